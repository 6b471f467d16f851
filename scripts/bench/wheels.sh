#!/bin/sh
# Wheels of what a machine with torch, torchvision and timm lacks for kdrun, by the hashes of requirements.lock:
#   sh scripts/bench/wheels.sh .whl [NAME...]       into the folder .whl; for Python 3.12 on x86-64, else VERSION=3.11
# Installed there without a network: python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl
set -eu
out=${1:?the folder for the wheels}
shift
test $# -gt 0 || set -- hydra-core omegaconf antlr4-python3-runtime pydantic pydantic-core annotated-types \
  typing-inspection typing-extensions
lock=$(dirname "$0")/../../requirements.lock
asked=$(mktemp)
source=$(mktemp)
trap 'rm -f "$asked" "$source"' EXIT
for name in "$@"; do
  to=$asked
  test "$name" != antlr4-python3-runtime || to=$source # published as source only
  grep -q "^$name==" "$lock" || { echo "error: $name is not in requirements.lock" >&2; exit 2; }
  awk -v name="$name" 'index($0, name "==") == 1 { on = 1 } on { print } on && !/\\$/ { exit }' "$lock" >>"$to"
done
rm -rf "$out"
mkdir -p "$out"
quiet='--quiet --disable-pip-version-check --no-deps --require-hashes'
platforms=''
for platform in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do
  platforms="$platforms --platform ${platform}_x86_64"
done
test ! -s "$asked" || ${PYTHON:-python3} -m pip download $quiet --only-binary=:all: --implementation cp \
  --python-version "${VERSION:-3.12}" $platforms --dest "$out" --requirement "$asked"
test ! -s "$source" || ${PYTHON:-python3} -m pip wheel $quiet --wheel-dir "$out" --requirement "$source"
ls -l "$out"
