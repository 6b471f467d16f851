"""Speed of the loop beside the bare step, and of the parts around it, measured in one process, alternating.

python -m scripts.bench                                      everything, one after the other
python -m scripts.bench step views rounds=3                  some of it
python -m scripts.bench step cases=kd,fixmatch precisions=bf16
python -m scripts.bench step device=cuda                     what can run there
python -m scripts.bench rivals rounds=3 write=outputs/published/bench_rivals    costs in docs/methods/index.md
python -m scripts.bench write=outputs/published/bench        bench.json and bench.svg too, as `make bench`

Each line has the minimum, the median and the maximum. Nothing else should run on the machine.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])  # also where this is run as `python scripts/bench`

BENCHES = {
    "start": ("start", 1.5), "step": ("step", 80.0), "views": ("views", 1.5), "students": ("students", 3.0),
    "losses": ("losses", 0.5), "metrics": ("metrics", 0.5), "memory": ("memory", 1.0), "sweep": ("sweep", 0.5),
    "data": ("data", 1.0), "dho": ("dho", 1.0), "tables": ("tables", 1.5), "engines": ("engines", 15.0),
    "scheduler": ("engines", 2.0), "growth": ("growth", 8.0), "ranks": ("distributed", 6.0),
    "accumulate": ("distributed", 4.0), "rivals": ("rivals", 12.0),
}  # fmt: skip
"""Name -> the file that has its `bench_<name>`, and its minutes on two cores at five rounds."""
ON_CUDA = ("step",)
OWN = {"step": ("cases", "precisions"), "rivals": ("cases",)}
"""The options that not all of them take."""
OPTIONS = {"rounds": "5", "device": "cpu", "write": "", "cases": "", "precisions": "fp32,bf16"}


def asked(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of benchmarks, and the options with what was given. Exits where a word is neither."""
    parser = argparse.ArgumentParser(
        "python -m scripts.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", help=f"any of {', '.join(BENCHES)} (default: all), and key=value")
    words = parser.parse_args(arguments).which
    given = dict(word.split("=", 1) for word in words if "=" in word)
    chosen = [word for word in words if "=" not in word]
    if unknown := [name for name in chosen if name not in BENCHES]:
        parser.error(f"unknown bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    if unknown := [key for key in given if key not in OPTIONS]:
        parser.error(f"unknown option {unknown[0]!r}; allowed: {', '.join(OPTIONS)}")
    options = {**OPTIONS, **given}
    if not options["rounds"].isdigit() or not int(options["rounds"]):
        parser.error(f"rounds: {options['rounds']} is no number above 0")
    if options["device"].partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"device: {options['device']} is neither cpu nor cuda")
    if options["device"] != "cpu":
        if elsewhere := [name for name in chosen if name not in ON_CUDA]:
            parser.error(f"{elsewhere[0]} runs on the CPU only; with device=cuda: {', '.join(ON_CUDA)}")
        chosen = chosen or list(ON_CUDA)
    chosen = chosen or list(BENCHES)
    for key in sorted(given):
        owners = [name for name, keys in OWN.items() if key in keys]
        if owners and not set(owners) & set(chosen):
            parser.error(f"{key}: goes with {' or '.join(owners)}")
    return chosen, options


def main(arguments: list[str]) -> None:
    chosen, options = asked(arguments)
    import torch

    from kdrun.core.device import device_of
    from scripts.bench.harness import session
    from scripts.bench.machine import machine
    from scripts.bench.written import write

    session.rounds, session.device = int(options["rounds"]), device_of(options["device"], "device")
    described = machine(session.device)  # before anything runs: the load is that of others
    minutes = sum(BENCHES[name][1] for name in chosen) * (session.rounds + 1) / 6
    load = ", ".join(f"load {value:.1f}" for value in described["load"][:1])
    print(f"{described['cpu']}, torch {torch.__version__}, {torch.get_num_threads()} threads, {load}")
    print(f"{session.rounds} rounds: min, median, max; about {minutes:.0f} minutes on two cores", flush=True)
    began, spent = time.time(), {}
    for name in chosen:
        session.bench, started = name, time.perf_counter()
        own: dict[str, Any] = {key: options[key] for key in OWN.get(name, ())}
        getattr(importlib.import_module(f"scripts.bench.{BENCHES[name][0]}"), f"bench_{name}")(**own)
        spent[name] = (time.perf_counter() - started) / 60
    if options["write"]:
        ran = {"began": began, "rounds": session.rounds, "device": str(session.device), "minutes": spent}
        for path in write(Path(options["write"]), described, ran, session.figures):
            print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
