"""Wrong command lines and damaged inputs of the commands that read, each with a part of the one line that answers it.

`make(here)` writes what they need; the working directory is `here` then. `COMMANDS` are (words, expected) with `{run}` and
`{teacher}` for the directories that it returns. `DAMAGE` are (what is done to a copy of the run, words, expected): the
words have `{run}` for that copy and `{outputs}` for its outputs folder. Exit code 2 and one line each.
"""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from kdrun.cli.train import main as train
from kdrun.config.key import run_directory
from kdrun.core.sums import SEAL
from kdrun.results.plan import configs_of
from kdrun.results.spec import table_spec
from kdrun.runs.record import write_record
from tests.conftest import FAST, TEACHER
from tests.records import whole

LONG = "x" * 300  # more than a file system allows
Damage = Callable[[Path], object]


def make(here: Path) -> dict[str, str]:
    """A finished run with a teacher, hand-written records of table=demo, images, a bomb, pipes, an empty folder."""
    outputs = here / "outputs"
    if train([*FAST, *TEACHER, "experiment=demo", "loss=kd", f"execution.outputs={outputs}"]):
        raise RuntimeError("the run of the harness failed")
    (run,) = outputs.glob("runs/distill/*/*/*/")
    (teacher,) = outputs.glob("runs/supervised/*/*/*/")
    for row, _, configs in configs_of("demo", table_spec("demo"), outputs):
        for config in configs:
            metrics = {f"test/student/{name}": 0.5 for name in ("top1", "ece", "confidence")}
            metrics |= {} if row == "CE" else {f"test/teacher/{name}": 0.5 for name in ("top1", "confidence_gap")}
            key = run_directory(config).name.rpartition("-")[2]
            write_record(run_directory(config), whole(key, config.seed, num_labels=100, metrics=metrics))
    Image.new("RGB", (20, 20)).save(here / "a.png")
    Image.new("1", (13000, 13000)).save(here / "bomb.png")
    (here / "t.png").write_text("no image")
    (here / "empty").mkdir()
    (here / "pipes").mkdir()
    for name in ("pipe.jpg", "pipes/a.jpg"):
        os.mkfifo(here / name)
    return {"run": str(run.relative_to(here)), "teacher": str(teacher.relative_to(here))}


COMMANDS: list[tuple[str, str]] = [
    ("table metric=nope", "metric: nope: write <images>/<metric>, such as test/top1 or val/student/ece"),
    ("table metric=test/nope", "has no test/student/nope"),
    ("table metric=nope/", "has no nope/student"),
    ("table metric=test/top1/x/y", "has no test/top1/x/y"),
    ("table metric=", "metric: : write <images>/<metric>, such as test/top1 or val/student/ece"),
    ("table where=[seed]", "where: seed: write <key>=<value>, such as loss=kd; several values as seed=[0,1]"),
    ("table where=nope=1", "where: nope: no run has this key"),
    ("table --config-dir", "--config-dir: give a folder of your own configs"),
    ("table --config-dir nope table=demo", "nope: no such directory"),
    ("table protocol=nope", "protocol: 'nope' is not allowed"),
    ("table format=nope", "format: 'nope' is not allowed"),
    ("table out=/nope/x.txt", "out: /nope: no such folder"),
    ("table out=empty", "out: empty: is a folder; name a file"),
    ("table outputs=/nope", "outputs: /nope: no such folder"),
    ("table outputs=a.png", "outputs: a.png: not a folder"),
    ("table outputs=empty", "empty: no runs there; start one with kdrun"),
    ("table outputs=", ".: no runs there; start one with kdrun"),
    ("table table=", "table=: no such table"),
    ("table table=../../conf/table/demo", "table=../../conf/table/demo: no such table"),
    ("table table=/etc/passwd", "table=/etc/passwd: no such table"),
    ("table table=demo compare=KD,KD", "compare: KD,KD: a row against itself; nearest: KD"),
    ("table table=demo compare=KD,Nope", "compare: KD,Nope: write two rows, rowA,rowB; Nope:"),
    ("table table=demo compare=KD", "compare: KD: write two rows, rowA,rowB; KD: nearest: KD"),
    ("table table=demo compare=,", "compare: ,: write two rows, rowA,rowB; :"),
    ("table table=demo compare=", "compare: : write two rows, rowA,rowB; :"),
    ("table table=demo columns=nope", "columns: nope: no such column"),
    ("table table=demo columns=test/nope", "has no test/student/nope (last)"),
    ("table table=demo rows=KD", "rows: unknown key"),
    ("table table=demo cols=KD", "cols: unknown key; nearest"),
    ("table table=demo curve=0", "curve: must be greater than 0, got '0'"),
    ("table table=demo curve=-1 metric=train/loss", "curve: must be greater than 0, got '-1'"),
    ("table table=demo curve=3", "curve: give metric=<what metrics.jsonl has, e.g. train/mask_rate> too"),
    ("table table=demo curve=3 metric=nope", "table=demo: no run has logged nope"),
    (
        "table table=demo curve=abc metric=train/loss",
        "curve: must be a valid integer, unable to parse string as an integer, got 'abc'",
    ),
    ("table table=demo spread=nope", "spread: 'nope' is not allowed"),
    ("table table=demo metric=nope", "metric: nope: write <images>/<metric>, such as test/top1 or val/student/ece"),
    ("table table=demo metric=test/nope", "has no test/student/nope"),
    ("table table=demo format=html out=empty", "out: empty: is a folder; name a file"),
    ("table table=demo format=html out=/nope/x.html", "out: /nope: no such folder"),
    ("table table=demo plan=maybe", "plan: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ("table table=demo plan=true out=x.txt", "out: a plan has no values; leave it out, or plan and dry"),
    ("table table=demo execute=true dry=true", "execute: goes with neither plan=true nor dry=true; leave one out"),
    ("table table=demo plan=true metric=nope/x", "metric: a plan has no values; leave it out, or plan and dry"),
    ("table table=demo override=a", "override: goes with dry=true or execute=true"),
    ("table execute=true", "execute: give table=<name> too"),
    ("table dry=true", "dry: give table=<name> too"),
    ("table compare=a,b", "compare: a,b: write two rows, rowA,rowB"),
    ("table columns=param", "columns: param: no such column; nearest: params"),
    ("table table=demo table=demo", "table: given twice, demo and demo; leave one out"),
    ("table =x", ": unknown key"),
    ("table x", "x: write key=value"),
    ("table -x", "-x: write key=value"),
    ("table --plan", "--plan: write key=value; nearest"),
    ("status metric=nope", "metric: nope: no run here has it"),
    ("status metric=", "metric: : no run here has it"),
    ("status outputs=/nope", "outputs: /nope: no such folder"),
    ("status outputs=a.png", "outputs: a.png: not a folder"),
    ("status sort=nope", "sort: 'nope' is not allowed"),
    ("status limit=0", "limit: must be greater than 0, got '0'"),
    ("status limit=-1", "limit: must be greater than 0, got '-1'"),
    ("status limit=x", "limit: must be a valid integer, unable to parse string as an integer, got 'x'"),
    ("status reverse=maybe", "reverse: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ("status status=nope", "status: 'nope' is not allowed; nearest"),
    ("status seed=0 seed=1", "seed: given twice, 0 and 1; leave one out"),
    ("status method.nme=x", "method.nme: no run has this key; nearest"),
    ("status =x", "=x: write <key>=<value>, such as loss=kd; several values as seed=[0,1]"),
    ("status nope=1", "nope: no run has this key"),
    ("compare", "run: missing; a value is required"),
    ("compare run={run}", "run: List should have at least 2 items after validation, not 1"),
    ("compare run={run} run={run}", ": given twice; name each run once"),
    ("compare run={run} run={teacher} net=nope", "no predictions test-nope"),
    ("compare run={run} run={teacher} split=train", "split: 'train' is not allowed"),
    ("compare run={run} run={teacher} show=-1", "show: must be greater than or equal to 0, got '-1'"),
    ("compare run={run} run=empty", "empty: not a run directory (no record.json)"),
    ("compare run={run} run=a.png", "a.png: not a run directory (no record.json)"),
    ("compare run={run} run={teacher} run={run}", "run: List should have at most 2 items after validation, not 3"),
    ("compare run= run=", ": not a run directory (no record.json)"),
    ("compare run={run} run={teacher} metric=x", "metric: unknown key"),
    ("evaluate", "run: missing; a value is required"),
    ("evaluate run=", ": not a run directory (no record.json)"),
    ("evaluate run=empty", "empty: not a run directory (no record.json)"),
    ("evaluate run={run} metric=test/top1", "metric: unknown key"),
    ("evaluate run={run} name=a/b", "name: String should match pattern '^[\\w.+-]+$', got 'a/b'"),
    ("evaluate run={run} name=", "name: String should match pattern '^[\\w.+-]+$', got ''"),
    ("evaluate run={run} amend=maybe", "amend: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ("evaluate run={run} method.nope=1", "method.nope: unknown key"),
    ("evaluate run={run} method.name=x", "method.name: unknown key"),
    (
        "evaluate run={run} method=distill",
        "method=distill: the run's method stays; give keys of it, method.<key>=<value>",
    ),
    ("evaluate run={run} dataset=nope", "dataset=nope: no such option; nearest"),
    (
        "evaluate run={run} dataset=svhn dataset.root=/nope dataset.download=false",
        "dataset.root: /nope/train_32x32.mat is not there",
    ),
    ("evaluate run={run} dataset.path=/nope", "dataset.path: unknown key; nearest"),
    (
        "evaluate run={run} dataset.num_labels=abc",
        "dataset.num_labels: 'abc' is no number of labels; give e.g. 160, 16/class or 1%",
    ),
    (
        "evaluate run={run} evaluate.corruptions=/nope",
        "evaluate.corruptions: /nope/labels.npy: no such file; expected the files of CIFAR-10-C or CIFAR-100-C",
    ),
    (
        "evaluate run={run} evaluate.corruptions=empty",
        "evaluate.corruptions: empty/labels.npy: no such file; expected the files of CIFAR-10-C or CIFAR-100-C",
    ),
    ("evaluate run={run} evaluate.sets=[nope]", "evaluate.sets.0: 'nope' is not allowed"),
    ("evaluate run={run} evaluate.sets=nope", "evaluate.sets: must be a valid list, got 'nope'"),
    (
        "evaluate run={run} evaluate.sets=[imagenet_v2]",
        "evaluate.sets: imagenet_v2: dataset=digits has no WordNet ids as classes; choose dataset=imagenet",
    ),
    ("evaluate run={run} evaluate.nope=1", "evaluate.nope: unknown key"),
    (
        "evaluate run={run} execution.device=nope",
        "execution.device=nope: stored predictions need no machine; ask for something else too",
    ),
    (
        "evaluate run={run} execution.device=cpu dataset=digits execution.device=tpu",
        "execution.device: 'tpu' is not a device; allowed: auto, cpu, cuda, cuda:<n>, mps",
    ),
    (
        "evaluate run={run} execution.threads=0 dataset=digits",
        "execution.threads: must be greater than 0; or 0 is not allowed (allowed: auto), got 0",
    ),
    ("evaluate run={run} method.", "method.: unknown key"),
    ("evaluate run={run} dataset", "dataset: not understood; write key=value, +key=value to add, ~key to remove"),
    ("evaluate run={run} dataset=", "dataset=: no such option"),
    ('evaluate run={run} "method.x=[1,"', "method.x: unknown key"),
    (
        'evaluate run={run} "dataset=digits,svhn"',
        "dataset=digits,svhn: several values are a sweep; add -m (or quote the value to mean a string)",
    ),
    ("evaluate run=0123456789ab", "run: no run with the key 0123456789ab below outputs"),
    ("export run={run}", "to: missing; a value is required"),
    ("export run={run} to=nope", "to: 'nope' is not allowed"),
    ("export to=onnx", "run: missing; a value is required"),
    ("export run={run} to=safetensors predictor=nope", "predictor: nope: not one of "),
    ("export run={run} to=safetensors out=/nope/x.safetensors", "out: /nope: no such folder"),
    ("export run={run} to=safetensors out=empty", "out: empty: is there already; give another name, or overwrite=true"),
    (
        "export run={run} to=safetensors out=empty overwrite=true",
        "out: empty: is no export of this form, so it is not overwritten; give another name",
    ),
    ("export run={run} to=safetensors batch=1", "batch: must be greater than or equal to 2, got '1'"),
    ("export run={run} to=safetensors opset=20", "opset: only of to=onnx, not of to=safetensors; leave it out"),
    ("export run={run} to=onnx opset=3", "opset: must be greater than or equal to 18, got '3'"),
    ("export run={run} to=safetensors dynamic=false", "dynamic: to=safetensors takes any batch; leave it out"),
    ("export run={run} to=safetensors check=0", "check: must be greater than or equal to 1, got '0'"),
    ("export run={run} to=safetensors tolerance=0", "tolerance: must be greater than 0, got '0'"),
    ("export run={run} to=safetensors tolerance=nan", "tolerance: must be a finite number, got 'nan'"),
    ("export run={run} to=safetensors repeats=-1", "repeats: must be greater than or equal to 0, got '-1'"),
    ("export run={run} to=safetensors threads=0", "threads: must be greater than or equal to 1, got '0'"),
    ("export run={run} to=safetensors size=99", "size: 99: images of dataset=digits are 8x8; leave it out"),
    ("export run={run} to=hf_dir out=a.png", "out: a.png: is there already; give another name, or overwrite=true"),
    (
        "export run={run} to=hf_dir out=a.png overwrite=true",
        "out: a.png: is no export of this form, so it is not overwritten; give another name",
    ),
    (
        "export run=ffffffffffff to=onnx outputs=/nope",
        "run: no run with the key ffffffffffff below /nope; give the directory that it lies in",
    ),
    (
        "export run=ffffffffffff to=onnx outputs=empty",
        "run: no run with the key ffffffffffff below empty; give the directory that it lies in",
    ),
    ("predict run={run}", "images: missing; a value is required"),
    ("predict images=a.png overwrite=true", "run: missing; a value is required"),
    ("predict run={run} images=a.png out=/nope/x.csv", "out: /nope: no such folder"),
    ("predict run={run} images=a.png out=empty", "out: empty: is a folder; name a file"),
    ("predict run={run} images=a.png out=empty overwrite=true", "out: empty: is a folder; name a file"),
    ("predict run={run} images=a.png out=t.png", "out: t.png: the ending tells the format"),
    ("predict run={run} images=a.png top=0 overwrite=true", "top: must be greater than or equal to 1, got '0'"),
    ("predict run={run} images=a.png batch=0 overwrite=true", "batch: must be greater than or equal to 1, got '0'"),
    (
        "predict run={run} images=a.png device=nope overwrite=true",
        "device: 'nope' is not a device; allowed: auto, cpu, cuda, cuda:<n>, mps",
    ),
    ("predict run={run} images=a.png threads=0 overwrite=true", "threads: must be greater than or equal to 1, got '0'"),
    ("predict run={run} images=a.png size=0 overwrite=true", "size: must be greater than or equal to 1, got '0'"),
    (
        "predict run={run} images=a.png max_pixels=0 overwrite=true",
        "max_pixels: must be greater than or equal to 1, got '0'",
    ),
    ("publish", "table: missing; a value is required"),
    ("publish table=nope", "table=nope: no such table"),
    ("publish table=../x", "table=../x: no such table"),
    ("publish table=demo outputs=/nope", "outputs: /nope: no such folder"),
    (
        "publish table=demo published=/nope check=true",
        "/nope/demo/published.json: is not there; run kdrun publish table=demo",
    ),
    ("publish published=/nope check=true", "published: /nope: no such folder"),
    (
        "publish table=demo published=a.png check=true",
        "a.png/demo/published.json: not readable (Not a directory); delete it and publish anew",
    ),
    (
        "publish table=demo again=true published=empty",
        "empty/demo/records.jsonl: not readable (No such file or directory); publish the table anew",
    ),
    ("publish table=demo curve=x", "curve: x: write <metric>:<points>, such as train/mask_rate:8"),
    (
        "publish table=demo curve=train/loss:0",
        "curve: train/loss:0: write <metric>:<points>, such as train/mask_rate:8",
    ),
    ("publish table=demo columns=nope", "columns: nope: no such column"),
    (
        "publish table=demo compose=true",
        "compose: goes with again=true or check=true; else the plan is made anew anyway",
    ),
    ("publish table=demo again=true check=true", "again: writes, and check does not; leave one out"),
    (
        "publish check=true metric=test/top1 published=empty",
        "metric: check=true compares what was published; leave it out",
    ),
    ("publish check=maybe", "check: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ("download table=nope", "table=nope: no such table"),
    ("download table=demo x=1", "table=demo: its runs are those of conf/table; leave out the other arguments"),
    ("download dataset=nope", "dataset=nope: no such option; nearest"),
    ("download dry=maybe table=demo", "dry: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ("download nope", "nope: not understood; write key=value, +key=value to add, ~key to remove"),
    ("download sed=1 dry=true", "sed: unknown key; nearest"),
    ("plot", "command line: not a picture"),
    ("plot nope", "nope: not a picture"),
    ("plot curves", "give table=<name>, or run=<directory> once or more"),
    ("plot curves run={run} metric=nope", "has not logged nope"),
    ("plot curves run={run} run={run}", ": given twice; name each run once"),
    ("plot curves run={run} table=demo", "give table=<name>, or run=<directory> once or more"),
    ("plot curves table=nope", "table=nope: no such table"),
    ("plot curves table=demo outputs=/nope", "outputs: /nope: no such folder"),
    ("plot curves run={run} out=x.pdf", "out: x.pdf: write a name that ends in .png or .svg"),
    ("plot curves run={run} out=/nope/x.png", "out: /nope: no such folder"),
    ("plot curves run={run} out=empty", "out: empty: write a name that ends in .png or .svg"),
    ("plot curves run={run} band=nope", "band: 'nope' is not allowed"),
    ("plot confidence", "table: missing; a value is required"),
    ("plot confidence table=demo split=train", "split: 'train' is not allowed"),
    ("plot confidence table=demo outputs=/nope", "outputs: /nope: no such folder"),
    ("plot coverage run={run} net=nope", "no predictions test-nope"),
    ("plot coverage run={run} split=train", "split: 'train' is not allowed"),
    ("plot coverage run={run} net=../../x", "no predictions test-../../x"),
    ("plot reliability run=empty", "empty: not a run directory (no record.json)"),
    ("plot reliability run={run} out=x", "out: x: write a name that ends in .png or .svg"),
    ("plot tradeoff table=demo x=nope", "has no test/student/nope"),
    ("plot tradeoff table=../demo", "table=../demo: no such table"),
    ("analyze", "command line: not an analysis"),
    ("analyze nope", "nope: not an analysis"),
    ("analyze teacher", "run: missing; a value is required"),
    ("analyze teacher run={teacher}", "no predictions test-teacher; it has test-student,"),
    ("analyze teacher run={run} run={run}", ": given twice; name each run once"),
    ("analyze teacher run={run} split=train", "split: 'train' is not allowed"),
    ("analyze vicinal run={run} batches=0", "batches: must be greater than 0, got '0'"),
    ("analyze vicinal run={run} batch_size=0", "batch_size: must be greater than 0, got '0'"),
    ("analyze vicinal run={run} seed=-1", "seed: must be greater than or equal to 0, got '-1'"),
    ("analyze linear_probe run={run} net=nope", "no network 'nope'"),
    ("analyze linear_probe run={run} c=0", "c.0: must be greater than 0, got '0'"),
    (
        "analyze linear_probe run={run} c=nope",
        "c.0: must be a valid number, unable to parse string as a number, got 'nope'",
    ),
    ("analyze linear_probe run={run} labels=nope", "labels: 'nope' is not allowed"),
    ("analyze linear_probe run={run} max_iter=0", "max_iter: must be greater than 0, got '0'"),
    ("analyze propagation", "table: missing; a value is required"),
    ("analyze propagation table=nope", "table=nope: no such table"),
    (
        "analyze propagation table=demo metric=nope",
        "table=demo: nothing to fit: 0 runs are missing in outputs, 12 have no test/teacher/nope",
    ),
    ("analyze propagation table=demo outputs=/nope", "outputs: /nope: no such folder"),
    ("explain loss=nope", "loss=nope: no such option; nearest"),
    ("explain nope", "nope: not understood; write key=value, +key=value to add, ~key to remove"),
    ("explain -m loss=kd,ce", "-m: one run is explained at a time; give each key one value"),
    ("explain loss=kd,ce", "loss=kd,ce: several values are a sweep; add -m (or quote the value to mean a string)"),
    ("explain loss.kd.nope=1", "loss.kd.nope: unknown key; nearest"),
    ("explain --config-dir=/nope loss=kd", "--config-dir: /nope: no such directory"),
    ("explain --config-name=nope", "--config-name: nope: no such file in conf/"),
    ("explain --cfg job", "--cfg: not an option of explain; leave it out"),
    ("explain --nope", "command line: unrecognized arguments: --nope; see --help"),
    ("explain =1", "a group of the command line has no name of a file"),
    ("predict run={run} images=/nope overwrite=true", "images: /nope: no such file or folder"),
    ("predict run={run} images=empty overwrite=true", "images: empty: no images ("),
    ("predict run={run} images=t.png overwrite=true", "images: unreadable image t.png (not an image)"),
    ("predict run={run} images=pipe.jpg overwrite=true", "images: pipe.jpg: no such file or folder"),
    ("predict run={run} images=pipes overwrite=true", "images: pipes: no images ("),
    (
        "predict run={run} images=bomb.png overwrite=true",
        "13000x13000 are 169,000,000 pixels, more than max_pixels=89478485",
    ),
    (
        "predict run={run} images=a.png max_pixels=10 overwrite=true",
        "20x20 are 400 pixels, more than max_pixels=10, which can be raised",
    ),
    (
        "predict run={run} images=a.png size=64 overwrite=true",
        "size: 64: images of dataset=digits are 8x8; leave it out",
    ),
    ("predict run={run} images=a.png predictor=nope overwrite=true", "predictor: nope: not one of "),
    ("predict run={run} images=a.png predictor=teacher overwrite=true", "predictor: teacher: not one of "),
    ("predict run={teacher}/.. images=a.png overwrite=true", "not a run directory (no record.json)"),
    (f"table outputs={LONG}", f"outputs: {LONG}: File name too long"),
    (f"table out={LONG}", f"out: {LONG}: File name too long"),
    (f"table table={LONG}", "no such table"),
    (f"status outputs={LONG}", "File name too long"),
    (f"compare run={LONG} run={{run}}", "File name too long"),
    (f"predict run={{run}} images={LONG} overwrite=true", "File name too long"),
    (f"export run={{run}} to=safetensors out={LONG}", "File name too long"),
    (
        "table table=demo curve=3 metric=test/top1 columns=params",
        "columns: not of a table over training (curve); leave one out",
    ),
    (f"publish table={LONG}", "no such table"),
    (f"evaluate run={{run}} name={LONG}", "has 300 bytes"),
    ("analyze teacher run=pipe.jpg", "pipe.jpg: not a run directory (no record.json)"),
    ("explain --resolve loss=kd", "--resolve: not an option of explain"),
    (f"plot reliability run={LONG}", "File name too long"),
]


# ------------------------------------------------------------------------------------------------ damaged files


def _predictions(run: Path) -> Path:
    return run / "predictions" / "test-student.npz"


def _arrays(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Damage:
    def damage(run: Path) -> None:
        with np.load(_predictions(run)) as file:
            arrays = dict(file)
        np.savez(_predictions(run), **change(arrays))

    return damage


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    return lambda run: _predictions(run).write_bytes(change(_predictions(run).read_bytes()))


def _header(text: str) -> Damage:
    """Arrays whose header says this, and nothing behind it."""

    def damage(run: Path) -> None:
        padded = text.encode() + b" " * (64 - (len(text) + 11) % 64) + b"\n"
        with zipfile.ZipFile(_predictions(run), "w") as file:
            for name in ("index", "target", "logits"):
                file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded)

    return damage


def _patched(at: tuple[int, int], value: int) -> Damage:
    """A two-byte field of all local and central headers of the archive."""

    def change(content: bytes) -> bytes:
        out = bytearray(content)
        for mark, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), at, strict=True):
            place = out.find(mark)
            while place >= 0:
                out[place + offset : place + offset + 2] = struct.pack("<H", value)
                place = out.find(mark, place + 1)
        return bytes(out)

    return _bytes(change)


def _folder(run: Path) -> None:
    _predictions(run).unlink()
    _predictions(run).mkdir()


def _pipe(run: Path) -> None:
    _predictions(run).unlink()
    os.mkfifo(_predictions(run))


def _huge(rows: int) -> str:
    return f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, 10), }}"


PREDICTIONS: list[tuple[Damage, str]] = [
    (_bytes(lambda _: b""), "it is no zip archive"),
    (_bytes(lambda _: b"text"), "it is no zip archive"),
    (_bytes(lambda content: content[: len(content) // 2]), "it is no zip archive"),
    (_bytes(lambda content: content[:300] + bytes(200) + content[500:]), "Bad CRC-32"),
    (_patched((8, 10), 99), "compression method is not supported"),
    (_patched((8, 10), 8), "not readable predictions"),
    (_patched((8, 10), 14), "not readable predictions"),
    (_patched((6, 8), 1), "encrypted"),
    (_header("{'descr': '<f4', 'shape': (("), "not readable predictions"),
    (_header("}{"), "not readable predictions"),
    (_header(_huge(10**12)), "not readable predictions"),
    (_header(_huge(10**9)), "not readable predictions"),
    (_header(_huge(-1)), "not readable predictions"),
    (_arrays(lambda a: {**a, "logits": np.array([None] * 3, object)}), "allow_pickle=False"),
    (_arrays(lambda a: {"index": a["index"], "logits": a["logits"]}), "no array target"),
    (_arrays(lambda a: {**a, "logits": a["logits"].astype(np.int64)}), "logits: expected floats (M, C), got int64"),
    (_arrays(lambda a: {**a, "logits": a["logits"][:, 0]}), "logits: expected floats (M, C)"),
    (_arrays(lambda a: {name: array[:0] for name, array in a.items()}), "logits: expected floats (M, C)"),
    (_arrays(lambda a: {**a, "target": a["target"][:3]}), "target: expected integers ("),
    (_arrays(lambda a: {**a, "target": a["target"] + 50}), "allowed 0 to 9"),
    (_arrays(lambda a: {**a, "target": a["target"] - 50}), "allowed 0 to 9"),
    (_arrays(lambda a: {**a, "index": a["index"].astype(float)}), "index: expected integers ("),
    (_folder, "Is a directory"),
    (_pipe, "not a regular file"),
    (lambda run: _predictions(run).unlink(), "no predictions test-student; it has test-teacher"),
]


def without_checksums(place: Path) -> None:
    """As an older kdrun has left it: else the checksum tells first, whatever is wrong."""
    path = place / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name not in ("files", SEAL)}))


def _record(**changes: object) -> Damage:
    def damage(run: Path) -> None:
        record = json.loads((run / "record.json").read_text())
        record |= changes
        (run / "record.json").write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))

    return damage


def _text(content: str | bytes) -> Damage:
    whole = content if isinstance(content, bytes) else content.encode()
    return lambda run: (run / "record.json").write_bytes(whole)


def _instead(kind: Callable[[Path], object]) -> Damage:
    def damage(run: Path) -> None:
        (run / "record.json").unlink()
        kind(run / "record.json")

    return damage


RECORDS: list[tuple[Damage, str]] = [
    (_text(""), "not a readable record"),
    (_text("{"), "not a readable record"),
    (_text("null"), "record schema None"),
    (_text("[]"), "record schema None"),
    (_text('{"schema": 2}'), "record schema 2; this kdrun reads schema 1"),
    (_text('{"schema": 1, "status": "done"}'), "not a whole record (key: missing"),
    (_text(b'{"schema": 1, "name": "caf\xe9"}'), "not a readable record ('utf-8'"),
    (_text(bytes(1000)), "not a readable record"),
    (_text('{"schema": 1, "x": ' + "[" * 10**5 + "]" * 10**5 + "}"), "it nests too deeply"),
    (_record(extra=json.loads("[" * 90 + "]" * 90)), "nest deeper than 64"),
    (_record(metrics=None), "metrics: must be a valid dictionary, got None"),
    (_record(metrics={"test/student/top1": "0.5"}), "metrics.test/student/top1: must be a valid number"),
    (_record(metrics={"test/student/top1": float("nan")}), "NaN is no number of JSON"),
    (_record(metrics=[1, 2]), "metrics: must be a valid dictionary"),
    (_record(metrics=...), "metrics: missing"),
    (_record(seed="0"), "seed: must be a valid integer"),
    (_record(seed=True), "seed: must be a valid integer"),
    (_record(seed=...), "seed: missing"),
    (_record(key=3), "key: must be a valid string"),
    (_record(status="finished"), "status: 'finished' is not allowed"),
    (_record(status=None), "status: None is not allowed"),
    (_record(config={}), "config.method: missing"),
    (_record(config={"method": "distill"}), "config.method: must be a valid dictionary"),
    (_record(config=[]), "config: must be a valid dictionary"),
    (_record(nets={"student": 3}), "nets.student: must be a valid dictionary"),
    (_record(requires=[]), "requires: must be a valid dictionary"),
    (_record(seconds={"total": "long"}), "seconds.total: must be a valid number"),
    (_record(seconds={"total": float("inf")}), "Infinity is no number of JSON"),
    (_record(num_labels=[50]), "num_labels: must be a valid"),
    (_record(headline=3), "headline: must be a valid string"),
    (_record(dataset=None), "dataset: must be a valid string"),
    (_record(best_on_val={"step": 3}), "best_on_val.metrics: missing"),
    (_record(plugins={"a.py": 3}), "plugins.a.py: must be a valid string"),
    (_record(error="text"), "error: must be a valid dictionary"),
    (_record(split=[]), "split: must be a valid dictionary"),
    (_instead(Path.mkdir), "not a readable record (Is a directory)"),
    (_instead(os.mkfifo), "not a readable record (not a regular file)"),
]
DAMAGE: list[tuple[Damage, str, str]] = [
    *(
        (damage, words, expected)
        for damage, expected in PREDICTIONS
        for words in ("evaluate run={run}", "plot coverage run={run}", "compare run={run} run={teacher}")
        if not (expected.startswith("no predictions") and words.startswith("evaluate"))
    ),
    *(
        (damage, words, expected)
        for damage, expected in RECORDS
        for words in (
            "evaluate run={run}",
            "predict run={run} images=a.png overwrite=true",
            "analyze teacher run={run}",
        )
    ),
]
"""Of one run; `status` and `table` go on without it and name it, with the same words."""
