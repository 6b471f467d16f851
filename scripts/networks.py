"""docs/networks.md: of each family of timm's networks one of each class and classifier, as student and as teacher.

python scripts/networks.py                     those that outputs/networks.jsonl lacks, then the page when none is left
python scripts/networks.py only=vit,swin       families whose names begin so; the page is left alone
python scripts/networks.py seconds=300         stops after so long; the same command goes on

Each network is the one of its kind with the fewest parameters. It is trained for one step on a few images of 32
pixels, at the size that the refusal names where it refuses them, evaluated and saved; then it teaches a small student
for one step. Each in a process of its own, for 120 s at most, the largest left out. Random weights: nothing is fetched.
"""

import contextlib
import io
import json
import multiprocessing
import re
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from kdrun.cli.train import main as train
from kdrun.config.model import ModelConfig
from kdrun.core.paths import HERE
from kdrun.models.network import NetworkSpec, load_network, outline

ROOT = HERE.parent
PAGE, KEPT = ROOT / "docs" / "networks.md", ROOT / "outputs" / "networks.jsonl"
SIDE, CLASSES, LONGEST, LARGEST = 32, 3, 120, 150e6  # pixels, classes, seconds, parameters
COMMON = [
    "tracker=none", "dataset=npz", "schedule.steps=1", "schedule.batch_size=4", "schedule.lr=1e-6",
    "schedule.eval_every_steps=null", "execution.threads=1", "execution.device=cpu", "execution.eval_batch_size=3",
    "views.weak.pad=0",
]  # fmt: skip


def examples(family: str) -> list[str]:
    """The smallest network of each class and classifier of a family, but those that timm has for its own tests."""
    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    names = timm.list_models(module=family)
    theirs = [name for name in names if timm.model_entrypoint(name).__module__.startswith("timm.")]
    for name in [name for name in theirs if not name.startswith("test_")] or theirs:
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=CLASSES)
        found = sum(parameter.numel() for parameter in net.parameters()), name
        kind = type(net).__name__, type(net.get_classifier() if hasattr(net, "get_classifier") else None).__name__
        smallest[kind] = min(found, smallest.get(kind, found))
    return [name for _, name in sorted(smallest.values())]


def asked(words: list[str], folder: Path) -> tuple[int, str, bool]:
    """A command in this process: exit code, what it says is wrong, whether it has written anything."""
    errors, outputs = io.StringIO(), folder / f"outputs{time.monotonic_ns()}"
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = train([*COMMON, f"dataset.path={folder / 'images.npz'}", f"execution.outputs={outputs}", *words])
    lines = [line for line in errors.getvalue().splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("error: ")] or lines[-1:] if code else []
    if code == 1:
        records = [json.loads(path.read_text()) for path in outputs.rglob("record.json")]
        wrong = [line for r in records if r.get("error") for line in r["error"]["message"].splitlines()[:1]]
    return code, " / ".join(line.removeprefix("error: ") for line in wrong), outputs.exists()


def used(words: list[str], key: str, folder: Path) -> dict[str, Any]:
    """How a run ends: as it is asked, else with the size that the refusal names."""
    extra: list[str] = []
    code, wrong, written = asked(words, folder)
    first = wrong
    if code == 2 and (size := re.search(rf"{re.escape(key)}\.size=\d+", wrong)):
        extra = [size[0]]
        code, wrong, written = asked([*words, *extra], folder)
    how = "works" if code == 0 else "refused" if code == 2 and not written else "breaks"
    return {"how": how, "with": extra, "line": wrong or first}


def kept(folder: Path, name: str) -> dict[str, Any]:
    """Of the student that was saved: its features, and whether they and the file say what the run said."""
    [path] = folder.glob("outputs*/runs/*/*/*/*/student.safetensors")
    network = load_network(path)
    pixels = torch.from_numpy(np.load(folder / "images.npz")["test_images"]).permute(0, 3, 1, 2)
    told = torch.from_numpy(np.load(path.parent / "predictions" / "test-student.npz")["logits"])
    wrong = []
    with torch.no_grad():
        plain = network(pixels)
        if not torch.allclose(network(pixels[:1]).logits, plain.logits[:1], atol=1e-4, rtol=1e-3):
            wrong.append("one image gives other logits than many")
        if not torch.allclose(plain.logits, told, atol=1e-4, rtol=1e-3):
            wrong.append("the saved network gives other logits than the run")
        for feature, channels in network.dims.items():
            try:
                out = network(pixels, (feature,))
            except Exception as error:
                wrong.append(f"{feature}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                continue
            value = out.features[feature]
            if value.shape[1] != channels or value.ndim != (4 if feature.startswith("stage") else 2):
                wrong.append(f"{feature} is {tuple(value.shape)}, announced {channels} channels")
            if not torch.allclose(out.logits, plain.logits, atol=1e-4, rtol=1e-3):
                wrong.append(f"with {feature} the logits are others")
    torch.save(load_file(path), folder / "weights.pth")
    return {"params": network.num_params, "features": list(network.dims), "wrong": wrong}


def probe(name: str, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8) for part, size in SPLITS}
    np.savez(folder / "images.npz", **arrays, **{f"{part}_labels": np.arange(size) % CLASSES for part, size in SPLITS})
    out: dict[str, Any] = {"name": name}
    start = time.monotonic()
    words = ["method=supervised", "loss=ce", "teacher=none", "student=timm", f"student.name={name}"]
    out["student"] = used(words, "student", folder)
    out["student"]["seconds"] = round(time.monotonic() - start, 1)
    if out["student"]["how"] == "works":
        out |= kept(folder, name)
    else:
        torch.save(timm.create_model(name, num_classes=CLASSES).state_dict(), folder / "weights.pth")
    start = time.monotonic()
    words = ["method=distill", "loss=kd", "student=resnet8", "student.args.width=4", "teacher=file"]
    words += [f"teacher.model.name={name}", f"teacher.path={folder / 'weights.pth'}"]
    out["teacher"] = used(words, "teacher.model", folder)
    out["teacher"]["seconds"] = round(time.monotonic() - start, 1)
    return out


SPLITS = (("train", 9), ("test", 3))


def bounded(name: str) -> dict[str, Any]:
    """`probe` in a process of its own, which is ended when it takes too long."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in timm.create_model(name, num_classes=CLASSES).parameters())
    if size > LARGEST:
        return {"name": name, "broken": f"more than {LARGEST / 1e6:.0f} M parameters"}
    here, there = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(target=_send, args=(there, name, Path(folder)))
        child.start()
        there.close()
        found: dict[str, Any] = {"name": name, "broken": f"no end within {LONGEST} s"}
        if here.poll(LONGEST):
            with contextlib.suppress(EOFError):
                found = {"name": name, "broken": "its process died"}
                found = here.recv()
        child.kill()
        child.join()
    return found


def _send(to: Connection, name: str, folder: Path) -> None:
    try:
        to.send(probe(name, folder))
    except BaseException as error:
        to.send({"name": name, "broken": f"{type(error).__name__}: {error}"})


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    only, end = tuple(given.get("only", "").split(",")), time.monotonic() + float(given.get("seconds", 1e9))
    KEPT.parent.mkdir(exist_ok=True)
    known: dict[str, dict[str, Any]] = {}
    for line in KEPT.read_text().splitlines() if KEPT.is_file() else ():
        row = json.loads(line)
        known |= {row.get("name", row["family"]): row} if row["timm"] == timm.__version__ else {}
    torch.set_num_threads(1)
    with KEPT.open("a") as file:

        def keep(key: str, row: dict[str, Any]) -> None:
            known[key] = {"timm": timm.__version__, **row}
            file.write(json.dumps(known[key]) + "\n")
            file.flush()

        for family in timm.list_modules():
            if not family.startswith(only):
                continue
            if f"/{family}" not in known:
                keep(f"/{family}", {"family": f"/{family}", "names": examples(family)})
            for name in known[f"/{family}"]["names"]:
                if name not in known:
                    if time.monotonic() > end:
                        print("stopped; the same command goes on")
                        return
                    keep(name, {"family": family, **bounded(name)})
                    print(json.dumps(known[name]), flush=True)
    if only == ("",):
        PAGE.write_text(page([known[name] for family in timm.list_modules() for name in known[f"/{family}"]["names"]]))
        print(f"wrote {PAGE}")


TEXT = """# Networks

One network of each class and kind of classifier in each family of timm {version}, the one with the fewest parameters:
trained as a student for one step on images of {side} pixels, evaluated, saved and opened again, then a frozen teacher
(`source=file`) of a small ResNet for one step. Made by `scripts/networks.py`, on a CPU, with random weights: {count}
networks, of which {works} work, {refused} are refused before anything runs, and {left} are too large for this pass.
Others of a family go as their example does, as far as they take the same images. kdrun's own CIFAR networks have no
row: all go.

- **{side} px** is what images of {side} pixels need: nothing; `size`, to which they are resized (`student.size=224`,
  `teacher.model.size=224`); or, for a network that starts from nothing, `args.img_size`, which makes it for them and
  costs less (`+student.args.img_size={side}`; tried without memory alone). Without it the run is refused before
  anything runs, and the line has the key to give.
- **student**, **teacher**: yes, it works; no, the run is refused in one line before anything runs, as the note says.
- **features** are what FitNet, attention transfer and VID (`stage<k>`) and CRD, RKD, DHO and the linear probe
  (`prelogits`) can read. Where one is missing, a loss or method that asks for it is refused before anything runs.
- A network with batch normalisation does not train on one image at once where its maps end at 1x1 (refused before
  anything runs), and on two its gradients may explode: give larger batches or a larger `size`.

| family | network | parameters | {side} px | student | teacher | features | note |
| --- | --- | ---: | --- | --- | --- | --- | --- |
{rows}
"""


def page(rows: list[dict[str, Any]]) -> str:
    told = "\n".join(f"| {' | '.join(cells(row))} |" for row in rows)
    both = [{row[role]["how"] for role in ("student", "teacher")} for row in rows if "broken" not in row]
    counts = {"works": both.count({"works"}), "refused": both.count({"refused"}), "left": len(rows) - len(both)}
    return TEXT.format(version=timm.__version__, side=SIDE, count=len(rows), rows=told, **counts)


def cells(row: dict[str, Any]) -> list[str]:
    name, notes = row["name"], list[str]()
    start = [row["family"], f"`{name}`"]
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=CLASSES)
    start.append(f"{sum(parameter.numel() for parameter in net.parameters()) / 1e6:.1f} M")
    if "broken" in row:
        return [*start, "", "not tried", "not tried", "", f"not in this pass: {row['broken']}"]
    student, teacher = row["student"], row["teacher"]
    sizes = re.findall(r"(?:student|teacher\.model)\.((?:args\.img_)?size=\d+)", student["line"] or teacher["line"])
    worked = "works" in (student["how"], teacher["how"])
    needs = " or ".join(f"`{size}`" for size in sizes) or ("as they are" if worked else "")
    words = [WORDS[side["how"]] for side in (student, teacher)]
    notes += [
        side["line"].partition("; see")[0].rpartition(": ")[2] for side in (student, teacher) if side["how"] != "works"
    ]
    features = row.get("features") or []
    stages = [feature for feature in features if feature.startswith("stage")]
    told = [f"`{stages[0]}` to `{stages[-1]}`"] if len(stages) > 1 else [f"`{stage}`" for stage in stages]
    told += [f"`{feature}`" for feature in features if feature not in stages]
    if student["how"] == "works" and (heads := heads_of(name)) > 1:
        notes.append(f"{heads} classifiers; one answer made of all, in training too")
    notes += row.get("wrong") or []
    return [*start, needs, *words, ", ".join(told), "; ".join(dict.fromkeys(notes)).replace("|", "\\|")]


WORDS = {"works": "yes", "refused": "no", "breaks": "**breaks**"}


def heads_of(name: str) -> int:
    spec = NetworkSpec(ModelConfig(name=name).model_dump(), CLASSES, 3, (0.5,) * 3, (0.5,) * 3)
    return outline(spec).num_heads


if __name__ == "__main__":
    main(sys.argv[1:])
