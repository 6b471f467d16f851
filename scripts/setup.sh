#!/bin/sh
# make setup: a virtual environment with the locked packages and kdrun itself, editable. From the environment:
#   VENV    the folder
#   PYTHON  the interpreter; empty: the newest one here that fits
#   TORCH   lock: PyPI's torch, as locked; else a build of the same version that uv --torch-backend knows: cpu, auto, cu128
set -eu
: "${VENV:=.venv}" "${PYTHON:=}" "${TORCH:=lock}"
cd "$(dirname "$0")/.."
began=$(date +%s)
inside=$VENV/bin/python
rest='' # the lock without torch and what it brings for GPUs
trap 'test -z "$rest" || rm -f "$rest"' EXIT

fail() { echo "error: $*" >&2; exit 1; }
uv_runs() { uv --version >/dev/null 2>&1; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; }
locked() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" requirements.lock; }
fetch_torch() {
  uv pip install --quiet --python "$inside" --torch-backend "$TORCH" "$@" "$(locked torch)" "$(locked torchvision)"
}

if test "$TORCH" != lock && ! uv_runs; then
  fail "TORCH=$TORCH needs uv, which knows where PyTorch keeps such builds; install uv, or leave TORCH out"
fi
if ! fits "$inside" || { ! uv_runs && ! "$inside" -m pip --version >/dev/null 2>&1; }; then
  python=
  if test -n "$PYTHON"; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi
  for candidate do
    if fits "$candidate"; then python=$("$candidate" -c 'import sys; print(sys.executable)'); break; fi
  done
  if test -z "$python"; then
    if test -n "$PYTHON"; then found="$PYTHON is not"; else found='found no'; fi
    fail "$found Python >=3.11,<3.14; name one: make setup PYTHON=/path/to/python3"
  fi
  echo "making $VENV with $python"
  rm -rf "$VENV"
  if uv_runs; then uv venv --quiet --python "$python" "$VENV"
  elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
    fail "$python lacks ensurepip; install uv (or Debian's python3-venv)"
  else "$python" -m venv "$VENV"; fi
fi

if uv_runs; then installer=$(uv --version); else installer=$("$inside" -m pip --version); fi
case $TORCH-$(uname -s) in
  lock-Linux) size='7 GB, over 4 of them for NVIDIA GPUs; TORCH=cpu does without' ;;
  lock-*) size='about 2 GB' ;;
  *) size="torch by uv's backend $TORCH, without hashes" ;;
esac
echo "$("$inside" --version), $(echo "$installer" | cut -d ' ' -f 1,2): up to $(grep -c == requirements.lock) packages of requirements.lock into $VENV ($size)"

if test "$TORCH" != lock; then # before anything is changed
  fetch_torch --dry-run --no-deps --reinstall ||
    fail "TORCH=$TORCH: uv cannot get these builds, see above; nothing was changed. TORCH=lock takes PyPI's"
  rest=$(mktemp)
  awk '/^[^ ]/ { on = !/^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==/ } on' requirements.lock >"$rest"
fi
echo "$TORCH" >"$VENV/.torch" # which an interrupted setup goes on with
if uv_runs; then
  uv pip sync --compile-bytecode --python "$inside" --require-hashes "${rest:-requirements.lock}"
  test "$TORCH" = lock || fetch_torch --compile-bytecode
  uv pip install --quiet --python "$inside" --no-deps --no-build-isolation --editable .
else
  "$inside" -m pip install --require-hashes --requirement requirements.lock
  "$inside" -m pip install --quiet --no-deps --no-build-isolation --editable .
fi
count=$("$inside" -c 'from importlib.metadata import distributions; print(len(list(distributions())))')
size=$(du -sk "$VENV" | awk '{ printf "%.1f GB", $1 * 1024 / 1e9 }')
echo "$VENV is ready: $count packages, $size, in $(($(date +%s) - began)) s"
echo "next: . $VENV/bin/activate, then kdrun --help; or make demo, a table in a minute or two"
