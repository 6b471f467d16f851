"""Bad input, case by case: what is given, and what the line must say. Each is refused with exit code 2, nothing written.

Words and messages may hold {root}, the folder that a case's files are made in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BASE = (
    "method=supervised", "loss=ce", "teacher=none", "tracker=none", "schedule.steps=2", "schedule.batch_size=4",
    "execution.threads=1", "execution.device=cpu",
)  # fmt: skip
Make = Callable[[Path], None]
LONG = "x" * 300


@dataclass(frozen=True)
class Bad:
    """One case."""

    name: str
    words: tuple[str, ...]
    says: str
    """What is in the line."""
    make: Make | None = None
    base: tuple[str, ...] = BASE

    def arguments(self, root: Path) -> list[str]:
        """The command line, after the files of the case are made in `root`."""
        if self.make is not None:
            self.make(root)
        return [word.replace("{root}", str(root)) for word in (*self.base, *self.words)]


def written(name: str, content: str | bytes) -> Make:
    def make(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def arrays(name: str, **content: object) -> Make:
    return lambda root: np.savez(root / name, **{key: np.asarray(value) for key, value in content.items()})


def images(channels: int, classes: int = 3, size: int = 16) -> Make:
    def make(root: Path) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (60, size, size, channels), dtype=np.uint8)
        label = np.arange(60) % classes
        np.savez(root / "d.npz", train_images=pixels, train_labels=label, test_images=pixels[:9], test_labels=label[:9])

    return make


# ------------------------------------------------------------------------------------------------------ command lines


def line(name: str, words: str | tuple[str, ...], says: str, base: tuple[str, ...] = BASE) -> Bad:
    return Bad(name, tuple(words.split()) if isinstance(words, str) else words, says, None, base)


NUMBERS = [
    line("steps beyond 2^63", "schedule.steps=100000000000000000000", "schedule.steps: 100000000000000000000 is beyond 2^63"),
    line("steps beyond a life", "schedule.steps=1000000000000000000", "schedule.steps: must be less than or equal to 1000000000"),
    line("epochs without end", "schedule.steps=null schedule.epochs=1e300", "schedule.epochs: must be less than or equal to"),
    line("epochs beyond a life", "schedule.steps=null schedule.epochs=1e8", "schedule.epochs: 1e+08 are 3.14e+10 steps"),
    line("no steps", "schedule.steps=0", "schedule.steps: must be greater than 0, got 0"),
    line("no epochs", "schedule.steps=null schedule.epochs=0", "schedule.epochs: must be greater than 0"),
    line("seed beyond 2^63", "seed=9223372036854775808", "seed: 9223372036854775808 is beyond 2^63"),
    line("a list of seeds", "seed=[1]", "seed: must be a valid integer, got [1]"),
    line("a mapping of seeds", "seed={a:1}", "seed: must be a valid integer, got {'a': 1}"),
    line("seed without value", "seed=", "seed: must be a valid integer, got ''"),
    line("seed null", "seed=null", "seed: must be a valid integer, got None"),
    line("split_seed beyond", "dataset.split_seed=1000000000000000000000", "dataset.split_seed: 1000000000000000000000 is beyond"),
    line("val_seed negative", "dataset.val_seed=-1", "dataset.val_seed: must be greater than or equal to 0"),
    line("batch that fills the memory", "schedule.batch_size=10000000000", "schedule.batch_size: 10000000000: the pixels of a step take"),
    line("batch of none", "schedule.batch_size=0", "schedule.batch_size: must be greater than 0"),
    line("batch of one, normalised", "schedule.batch_size=1 student.head=mlp", "schedule.batch_size: 1: batch normalisation sees one value"),
    line("batch of one, one pixel", "schedule.batch_size=1 student=timm student.name=resnet18", "schedule.batch_size: 1: batch normalisation"),
    line("wide network", "student.args.width=100000000", "student: resnet8 has 2.98e+18 parameters"),
    line("network that fills the memory", "student.args.width=100000", "student: resnet8 has 2.98e+12 parameters"),
    line("network of no width", "student.args.width=-3", "resnet8: the network cannot be built with args"),
    line("width a fraction", "student.args.width=1.5", "resnet8: the network cannot be built with args"),
    line("images that fill the memory", "student.size=100000", "schedule.batch_size: 4: the pixels of a step take"),
    line("wide teacher", "method=distill loss=kd teacher=resnet8 teacher.model.args.width=100000000", "teacher: resnet8 takes"),
    line("teacher's steps", "method=distill loss=kd teacher=resnet8 teacher.steps=100000000000000", "teacher.steps: must be less than or equal to"),
    line("workers", "execution.workers=1000000000", "execution.workers: must be less than or equal to 4096"),
    line("workers a word", "execution.workers=many", "execution.workers: must be a valid integer; or 'many' is not allowed (allowed: auto)"),
    line("threads", "execution.threads=1000000000", "execution.threads: must be less than or equal to 4096"),
    line("no threads", "execution.threads=0", "execution.threads: must be greater than 0"),
    line("evaluated by none", "execution.eval_batch_size=0", "execution.eval_batch_size: must be greater than 0"),
    line("not a number", "schedule.lr=nan", "schedule.lr: must be a finite number"),
    line("infinite", "schedule.clip_norm=inf", "schedule.clip_norm: must be a finite number"),
    line("momentum above 1", "schedule.momentum=1", "schedule.momentum: must be less than 1"),
    line("ema of 1", "schedule.ema_decay=1", "schedule.ema_decay: must be less than 1"),
    line("validation of no image", "dataset.val_fraction=1e-9", "dataset.val_fraction: 1e-09 of 1397 training images is none"),
    line("validation of all", "dataset.val_fraction=1", "dataset.val_fraction: must be less than 1"),
    line("nearly all for validation", "dataset.val_fraction=0.9999", "dataset.num_labels: "),
    line("negative validation", "dataset.val_fraction=-0.1", "dataset.val_fraction: must be greater than or equal to 0"),
    line("long number of labels", f"dataset.num_labels={'0' * 300}1/class", "dataset.num_labels: '000000000000000000000000'… is no number of labels"),
    line("list of labels", "dataset.num_labels=[1]", "dataset.num_labels: must be a valid integer; or must be a valid string, got [1]"),
    line("labels true", "dataset.num_labels=true", "dataset.num_labels: must be a valid integer"),
    line("labels a fraction", "dataset.num_labels=10.5", "dataset.num_labels: must be a valid integer"),
    line("mean of bytes", "dataset.mean=[125]", "dataset.mean.0: must be less than or equal to 1, got 125"),
    line("negative mean", "dataset.mean=[-0.5]", "dataset.mean.0: must be greater than or equal to 0"),
    line("mean of two for one channel", "dataset.mean=[0.1,0.2]", "dataset.mean: expected 1 numbers"),
    line("network's mean of two", "student.mean=[0.5,0.5]", "student.mean: 2 numbers for images of 1 channels; give 1"),
    line("network's std of four", "student.std=[1,1,1,1]", "student.std: 4 numbers for images of 1 channels; give 1"),
    line("views' mean of two", "views.mean=[0.5,0.5]", "views.mean: 2 numbers for images of 1 channels; give 1"),
    line("views' mean of four", "views.mean=[0.5,0.5,0.5,0.5]", "views.mean: List should have at most 3 items"),
    line("resident a word", "dataset.resident=maybe", "dataset.resident: must be a valid boolean; or 'maybe' is not allowed (allowed: auto)"),
    line("a network of size 0", "student.size=0", "student.size: must be greater than 0"),
    line("number of a path", "method=distill loss=kd teacher=file teacher.path=12 student@teacher.model=resnet8", "teacher.path: must be a valid string, got 12; quote it: \"teacher.path='12'\""),
    line("number of a tag", "tracker=wandb tracker.tags=[1]", "tracker.tags.0: must be a valid string, got 1; quote it"),
    line("lr of a list", "schedule.lr=[0.1]", "schedule.lr: must be a valid number"),
    line("keep_checkpoint a word", "execution.keep_checkpoint=perhaps", "execution.keep_checkpoint: must be a valid boolean"),
]  # fmt: skip

GROUPS = [
    line("student null after a number", "schedule.steps=2 student=null", "student=null: not an option of the group (allowed: "),
    line("method null after a number", "schedule.steps=2 method=null", "method=null: not an option of the group (allowed: "),
    line("dataset null after a number", "schedule.steps=2 dataset=null", "dataset=null: not an option of the group (allowed: "),
    line("experiment null after a number", "schedule.steps=2 experiment=null", "experiment=null: not an option of the group (allowed: "),
    line("loss null after a number", "schedule.steps=2 loss=null", "loss=null: not an option of the group (allowed: "),
    line("tracker null", "tracker=null", "tracker=null: not an option of the group (allowed: csv, mlflow, none, tensorboard, trackio, wandb); tracker=none is the word for nothing"),
    line("views null", "seed=1 views=null", "views=null: not an option of the group"),
    line("schedule true", "schedule=true", "schedule=true: not an option of the group"),
    line("teacher a number", "teacher=1.5", "teacher=1.5: not an option of the group"),
    line("dataset a number", "dataset=5", "dataset=5: not an option of the group"),
    line("tracker a word", "tracker=comet", "tracker=comet: no such option"),
    line("experiment a word", "experiment=nix", "experiment=nix: no such option"),
    line("views a word", "views=nix", "views=nix: no such option"),
    line("no method", "~method", "method: missing; choose one"),
    line("no loss", "~loss", "loss: missing; choose one"),
    line("no dataset", "~dataset", "dataset: missing; choose one"),
    line("term in a place of its own", "loss/term@loss.x=kd", "loss/term@loss.x: nothing to replace there; write +loss/term@loss.x=<option>"),
    line("unknown launcher", "hydra/launcher=nix", "hydra/launcher=nix: no such option"),
    line("unknown teacher kind", "teacher.source=nix", "teacher.source: unknown teacher 'nix' (allowed: clip"),
    line("unknown dataset name", "dataset.name=nix", "dataset.name: unknown dataset 'nix'"),
    line("unknown network", "student.name=nix", "student.name: timm knows no network 'nix'"),
    line("no network", "student.name=''", "student.name: timm knows no network ''"),
    line("students a number", "students=5", "students: expected a list of names or mappings, got 5"),
    line("students of numbers", "students=[5]", "students.0: expected a mapping of name"),
    line("students of a wrong key", ("students=[{name: resnet8, foo: 1}]",), "students.0.foo: unknown key (allowed: args"),
    line("execution a number", "execution=5", "execution: missing; it must be the mapping of conf/config.yaml"),
    line("views.weak null", "views.weak=null", "views.weak: must be a valid dictionary"),
    line("decay null", "schedule.decay=null", "schedule.decay: must be a valid dictionary"),
    line("coefficients a number", "coefficients=5", "coefficients: expected a mapping"),
    line("settings a number", "settings=5", "settings: expected a mapping"),
    line("ramps a number", "ramps=5", "ramps: expected a mapping"),
    line("plugins a word", "plugins=x.py", "plugins: expected a list of Python files, got 'x.py'"),
]  # fmt: skip

KEYS = [
    line("new key of args without +", "student.args.foo=1", "student.args.foo: a new key goes in with a +; write +student.args.foo=1"),
    line("new key of optimizer_args without +", "schedule.optimizer_args.foo=1", "write +schedule.optimizer_args.foo=1"),
    line("new key of lr_for without +", "schedule.lr_for.resnet8=1", "write +schedule.lr_for.resnet8=1"),
    line("unknown key", "schedule.lrr=1", "schedule.lrr: unknown key; nearest: lr (allowed: accumulate"),
    line("unknown key, none near", "views.weak.zzz=1", "views.weak.zzz: unknown key (allowed: "),
    line("unknown value, none near", "views.mix.per=image", "views.mix.per: 'image' is not allowed (allowed: batch, sample)"),
    line("unknown root key", "+a.b.c=1", "a: unknown key (allowed: coefficients"),
    line("term of no name", "+loss.a.b=1", "loss.a: expected a mapping with a name"),
    line("term called as a member", ("+loss.keys={name: mae}",), "loss.keys: not a name for a term; take letters"),
    line("term called as a method", ("+loss.update={name: mae}",), "loss.update: not a name for a term"),
    line("Hydra's run directory", "hydra.run.dir=/x", "hydra.run.dir: kdrun names directories itself and would not follow '/x'; give execution.outputs"),
    line("Hydra's sweep directory", "hydra.sweep.dir=/x", "hydra.sweep.dir: kdrun names directories itself"),
    line("Hydra's sweep subdirectory", "hydra.sweep.subdir=a", "hydra.sweep.subdir: kdrun names directories itself"),
    line("Hydra's output subdirectory", "hydra.output_subdir=.hydra", "hydra.output_subdir: kdrun names directories itself"),
    line("Hydra changes directories", "hydra.job.chdir=true", "hydra.job.chdir: kdrun names directories itself"),
    line("Hydra's mode", "hydra.mode=NIX", "hydra.mode=NIX"),
    line("interpolation of nothing", "seed=${nix}", "seed: Interpolation key 'nix' not found"),
    line("interpolation of itself", "seed=${seed}", "seed: Recursive interpolation detected"),
    line("interpolation in a circle", "schedule.lr=${schedule.momentum} schedule.momentum=${schedule.lr}", "Recursive interpolation detected"),
    line("unknown resolver", "seed=${nix:1}", "seed: Unsupported interpolation type nix"),
    line("an apostrophe", ("teacher.path=a'b.pt",), "teacher.path=a'b.pt: not understood; quote the value: \"teacher.path='a\\'b.pt'\""),
    line("apostrophes", ("teacher.path='a'b.pt'",), "not understood; quote the value: \"teacher.path='a\\'b.pt'\""),
    line("a home that is not quoted", "dataset.split_file=~/x", "quote the value: \"dataset.split_file='~/x'\""),
    line("a key with a space", ("a b=c",), "a b=c: not understood; write key='value'"),
    line("two signs", "seed==1", "seed==1: not understood; quote the value: \"seed='=1'\""),
    line("a bracket", "seed=[1", "seed=[1: not understood; quote the value: \"seed='[1'\""),
    line("no key", "seed", "seed: not understood; write key=value"),
    line("a config that is not there", "--config-name nix", "--config-name: nix: no such file in conf/"),
    line("a folder that is not there", "--config-dir nix", "--config-dir: "),
    line("a folder of 300 letters", f"--config-dir {LONG}", "--config-dir: "),
    line("a folder of null bytes", ("--config-dir=\0",), "--config-dir: "),
    line("a place of configs", "--config-path nix", "--config-path: kdrun's own configs are always needed"),
    line("a sweep of nothing", "-m seed=range(3,1)", "command line: a sweep over no value"),
    line("a choice of nothing", "-m seed=choice()", "seed=choice(): not understood"),
    line("a sweep with a wrong value", "-m seed=0,x", "job 1 (seed=x): seed: must be a valid integer, got 'x'"),
    line("a sweep without -m", "seed=0,1", "seed=0,1: several values are a sweep; add -m"),
    line("two tags of one network", "student=timm student.name=resnet18.nosuch", "student.name: Invalid pretrained tag"),
    line("evaluation sets of another dataset", "evaluate.sets=[imagenet_v2]", "evaluate.sets: imagenet_v2: dataset=digits has no WordNet ids"),
    line("unknown evaluation set", "evaluate.sets=[nix]", "evaluate.sets.0: 'nix' is not allowed"),
    line("unknown tracker name", "tracker.name=foo", "tracker.name: unknown tracker 'foo' (allowed: csv, mlflow, none, tensorboard, trackio, wandb)"),
    line("the name of a term", "loss.ce.name=kd", "loss.ce.label_smoothing: unknown key"),
]  # fmt: skip

# --------------------------------------------------------------------------------------------------------------- paths

PATHS = [
    line("outputs of 300 letters", f"execution.outputs={LONG}", "execution.outputs: " + "x" * 60 + "…: a name of 300 bytes"),
    line("root of 300 letters", f"dataset=imagenet dataset.root={LONG}", "dataset.root: " + "x" * 60 + "…: a name of 300 bytes"),
    line("cifar's root of 300 letters", f"dataset=cifar10 dataset.root=a/{LONG}/b", "dataset.root: a/"),
    line("npz of 300 letters", f"dataset=npz dataset.path={LONG}", "dataset.path: "),
    line("image folder of 300 letters", f"dataset=imagefolder dataset.path={LONG}", "dataset.path: "),
    line("plug-in of 300 letters", f"plugins=[{LONG}.py]", "plugins: "),
    line("class names of 300 letters", f"dataset.class_names={LONG}", "dataset.class_names: "),
    line("corruptions of 300 letters", f"evaluate.corruptions={LONG}", "evaluate.corruptions: "),
    line("split file of 300 letters", f"dataset.split_file={LONG}", "dataset.split_file: "),
    line("teacher of 300 letters", f"method=distill loss=kd teacher=file student@teacher.model=resnet8 teacher.path={LONG}", "teacher.path: "),
    line("weights of 300 letters", f"student=timm student.name=resnet18 student.pretrained=true student.file={LONG}", "student.file: "),
    line("no outputs", ("execution.outputs=''",), "execution.outputs: an empty path"),
    line("blank outputs", ("execution.outputs='  '",), "execution.outputs: "),
    line("no root", ("dataset=cifar10", "dataset.root=''"), "dataset.root: an empty path; give one"),
    line("no split file", ("dataset.split_file=''",), "dataset.split_file: an empty path"),
    line("no plug-in", ("plugins=['']",), "plugins: "),
    line("a null byte", ("dataset=npz", "dataset.path='a\0b'"), "holds a control character"),
    line("a bell", ("execution.outputs='a\x07'",), "holds a control character"),
    line("bytes that are not UTF-8", ("execution.outputs='caf\udce9'",), "is not UTF-8"),
    line("the home of nobody", ("execution.outputs='~nobody-at-all/x'",), "execution.outputs: ~nobody-at-all/x: no such home directory"),
    line("the root of nobody", ("dataset=cifar10", "dataset.root='~nobody-at-all/x'"), "dataset.root: ~nobody-at-all/x: no such home directory"),
    line("the plug-in of nobody", ("plugins=['~nobody-at-all/x.py']",), "plugins: ~nobody-at-all/x.py: no such Python file"),
    Bad("a split file that is a folder", ("dataset.split_file={root}",), "dataset.split_file: {root}: not a readable .npz file"),
    Bad("class names that are a folder", ("dataset.class_names={root}",), "dataset.class_names: not a readable text file"),
    Bad("outputs that are a file", ("execution.outputs={root}/file/x",), "execution.outputs: {root}/file/x: cannot write there", written("file", "")),
    Bad("root that is a file", ("dataset=imagefolder", "dataset.path={root}/file", "dataset.size=8"), "dataset.path: {root}/file", written("file", "")),
    Bad("cifar below a file", ("dataset=cifar10", "dataset.root={root}/file", "dataset.download=false"), "dataset.root: {root}/file", written("file", "")),
    Bad("class names in Latin-1", ("dataset.class_names={root}/names",), "{root}/names, line 2: not UTF-8 (byte 0xe9)", written("names", b"a\ncaf\xe9\n")),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------- YAML

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
YAML: dict[str, tuple[str | bytes, str]] = {
    "a tab": ("defaults:\n\t- term/ce@ce\n", "{root}/loss/bad.yaml, line 2: a tab; indent with spaces"),
    "indentation": ("ce:\n  name: ce\n weight: 1\n", "{root}/loss/bad.yaml, line 3: not YAML ("),
    "a key twice": ("name: ce\nname: kd\n", "{root}/loss/bad.yaml, line 2: name: twice in one mapping"),
    "an unknown alias": ("ce: *nix\n", "{root}/loss/bad.yaml, line 1: *nix: unknown"),
    "an alias of itself": ("a: &a [*a]\n", "{root}/loss/bad.yaml, line 1: *a: stands for itself"),
    "a Python tag": ("a: !!python/object/apply:os.system [x]\n", "{root}/loss/bad.yaml, line 1: a tag (python/object/apply:os.system)"),
    "a tag": ("a: !mine x\n", "{root}/loss/bad.yaml, line 1: a tag"),
    "a list": ("- a\n- b\n", "{root}/loss/bad.yaml, line 1: a list where a mapping is wanted"),
    "a word": ("hello\n", "{root}/loss/bad.yaml, line 1: a single value where a mapping is wanted"),
    "nothing": ("", "{root}/loss/bad.yaml: is empty"),
    "comments": ("# nothing\n", "{root}/loss/bad.yaml: is empty"),
    "Latin-1": (b"# caf\xe9\ndefaults: [term/ce@ce]\n", "{root}/loss/bad.yaml, line 1: not UTF-8 (byte 0xe9)"),
    "UTF-16": ("defaults: [term/ce@ce]\n".encode("utf-16"), "{root}/loss/bad.yaml, line 1: not UTF-8"),
    "a byte-order mark": (b"\xef\xbb\xbfdefaults: [term/ce@ce]\n", "{root}/loss/bad.yaml, line 1: begins with a byte-order mark"),
    "a null byte": ("a: \0\n", "{root}/loss/bad.yaml: not YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "{root}/loss/bad.yaml, line 2: a second document"),
    "a list as key": ("? [a, b]\n: 1\n", "{root}/loss/bad.yaml, line 1: a key that is no plain word"),
    "an open bracket": ("a: [1, 2\n", "{root}/loss/bad.yaml, line 2: not YAML"),
    "an open quote": ("a: 'x\n", "{root}/loss/bad.yaml, line 2: not YAML"),
    "two colons": ("a: b: c\n", "{root}/loss/bad.yaml, line 1: not YAML"),
    "a bomb": (BOMB, "{root}/loss/bad.yaml, line 6: its aliases stand for more than 100000 values"),
    "500 brackets": ("a: " + "[" * 500 + "]" * 500 + "\n", "{root}/loss/bad.yaml, line 1: more than 40 mappings or lists"),
    "300 levels": ("\n".join(" " * i + f"a{i}:" for i in range(300)) + " 1\n", "{root}/loss/bad.yaml, line 41: more than 40"),
    "a number of 6000 digits": (f"a: {'9' * 6000}\n", "{root}/loss/bad.yaml: Exceeds the limit"),
    "an open interpolation": ("ce: {name: ce, weight: '${foo'}\n", "{root}/loss/bad.yaml: "),
    "defaults that are a number": ("defaults: 5\n", "{root}/loss/bad.yaml: Invalid defaults list"),
    "defaults of a mapping": ("defaults: [{a: {b: c}}]\n", "{root}/loss/bad.yaml: Unsupported item value in defaults"),
    "defaults of itself": ("defaults: [bad]\n", "loss/bad.yaml: its defaults lead back to itself (loss/bad.yaml -> loss/bad.yaml)"),
    "defaults that are not there": ("defaults: [term/nix@ce]\n", "{root}/loss/bad.yaml: its defaults name loss/term=nix: no such option"),
    "defaults that replace nothing": ("defaults: [{override nix: kd}]\n", "{root}/loss/bad.yaml: Could not override 'loss/nix'"),
    "itself twice": ("defaults: [_self_, _self_]\n", "{root}/loss/bad.yaml: Duplicate _self_"),
    "a package of its own": ("# @package _nix_.foo\nname: ce\n", "_nix_: unknown key"),
    "interpolations in a circle": ("ce: {name: ce, weight: '${loss.ce.w}', w: '${loss.ce.weight}'}\n", "loss.ce.weight: Recursive interpolation"),
}  # fmt: skip
BROKEN = [Bad(f"YAML: {name}", ("--config-dir", "{root}", "loss=bad"), says, written("loss/bad.yaml", text)) for name, (text, says) in YAML.items()]  # fmt: skip


def circle(root: Path) -> None:
    written("loss/bad.yaml", "defaults: [other]\n")(root)
    written("loss/other.yaml", "defaults: [bad]\n")(root)


def yaml_folder(root: Path) -> None:
    (root / "loss" / "bad.yaml").mkdir(parents=True)


def dead_link(root: Path) -> None:
    (root / "loss").mkdir()
    (root / "loss" / "bad.yaml").symlink_to("nowhere")


BROKEN += [
    Bad("YAML: defaults in a circle", ("--config-dir", "{root}", "loss=bad"), "its defaults lead back to itself (loss/", circle),
    Bad("YAML: a folder", ("--config-dir", "{root}", "loss=bad"), "{root}/loss/bad.yaml: a folder, where a YAML file is wanted", yaml_folder),
    Bad("YAML: a dead link", ("--config-dir", "{root}", "loss=bad"), "{root}/loss/bad.yaml: a link that leads nowhere", dead_link),
    Bad("YAML: an experiment", ("--config-dir", "{root}", "experiment=bad"), "{root}/experiment/bad.yaml, line 3: a tab", written("experiment/bad.yaml", "# @package _global_\nseed: 1\n\tx: 2\n")),
    Bad("YAML: a dataset", ("--config-dir", "{root}", "dataset=bad"), "{root}/dataset/bad.yaml, line 1: a list", written("dataset/bad.yaml", "[1]\n")),
    Bad("YAML: a config", ("--config-dir", "{root}", "--config-name", "bad"), "{root}/bad.yaml, line 2: not YAML", written("bad.yaml", "a: [\n")),
    Bad("YAML: a config without ours", ("--config-dir", "{root}", "--config-name", "bad"), "", written("bad.yaml", "seed: 1\n"), ()),
]  # fmt: skip

# --------------------------------------------------------------------------------------------------------- environment

SECRET = [
    Bad("environment: a key that counts", ("--config-dir", "{root}", "experiment=bad"), "schedule.optimizer: ${oc.env:HOME}: what the machine says may not decide this key", written("experiment/bad.yaml", "# @package _global_\nschedule: {optimizer: '${oc.env:HOME}'}\n")),
    Bad("environment: by way of outputs", ("--config-dir", "{root}", "experiment=bad"), "schedule.optimizer: ${oc.env:HOME}: what the machine says", written("experiment/bad.yaml", "# @package _global_\nexecution: {outputs: '${oc.env:HOME}'}\nschedule: {optimizer: '${execution.outputs}'}\n")),
    Bad("environment: decoded", ("--config-dir", "{root}", "experiment=bad"), "seed: ", written("experiment/bad.yaml", "# @package _global_\nseed: '${oc.decode:${oc.env:OMP_NUM_THREADS}}'\n")),
    Bad("environment: new args", ("--config-dir", "{root}", "experiment=bad"), "student.args.x: ${oc.env:HOME}: what the machine says", written("experiment/bad.yaml", "# @package _global_\nstudent: {args: {x: '${oc.env:HOME}'}}\n")),
    Bad("environment: nested", ("--config-dir", "{root}", "experiment=bad"), "schedule.optimizer: ", written("experiment/bad.yaml", "# @package _global_\nschedule: {optimizer: '${oc.${views.mix.kind}:HOME}'}\nviews: {mix: {kind: env}}\n")),
    Bad("environment: a default", ("--config-dir", "{root}", "experiment=bad"), "schedule.optimizer: ${oc.env:KDRUN_NIX,sgd}", written("experiment/bad.yaml", "# @package _global_\nschedule: {optimizer: '${oc.env:KDRUN_NIX,sgd}'}\n")),
    line("environment: unset", "execution.outputs=${oc.env:KDRUN_NIX}", "Environment variable 'KDRUN_NIX' not found"),
    line("the time", "execution.outputs=${now:%Y}", "execution.outputs: ${now:%Y}: what the machine says may not decide this key"),
    line("the Python", "schedule.lr=${python_version:minor}", "schedule.lr: ${python_version:minor}: what the machine says"),
    line("Hydra's node", "tracker=wandb tracker.project=${hydra.job.name}", "tracker.project: Interpolation key 'hydra.job.name' not found"),
    line("Hydra's resolver", "student.name=${hydra:runtime.cwd}", "student.name: "),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- split files

SPLITS: dict[str, tuple[dict[str, object], str]] = {
    "no labeled": ({"labeled": np.empty(0, np.int64)}, "labeled is empty"),
    "labeled of fractions": ({"labeled": [0.0, 1.0]}, "labeled must be integers (N,), got float64 (2,)"),
    "labeled of two axes": ({"labeled": [[0, 1]]}, "labeled must be integers (N,), got int64 (1, 2)"),
    "labeled a number": ({"labeled": 5}, "labeled must be integers (N,), got int64 ()"),
    "labeled of truths": ({"labeled": [True, False]}, "labeled must be integers (N,), got bool (2,)"),
    "labeled of words": ({"labeled": ["a"]}, "labeled must be integers (N,)"),
    "labeled out of range": ({"labeled": [0, 5000]}, "labeled reaches from 0 to 5000, allowed 0 to 1396"),
    "labeled below 0": ({"labeled": [-1, 3]}, "labeled reaches from -1 to 3"),
    "labeled beyond int64": ({"labeled": np.array([2**63 + 5], np.uint64)}, "labeled reaches from"),
    "labeled twice": ({"labeled": [1, 1]}, "labeled names 1 positions twice"),
    "unlabeled empty": ({"labeled": [1], "unlabeled": np.empty(0, np.int64)}, "unlabeled is empty"),
    "labeled for validation": ({"labeled": [1], "val": [1]}, "1 positions stand in both labeled and val"),
    "labels too many": ({"labeled": [1], "train": [1]}, "expected arrays labeled, unlabeled, val; got labeled, train"),
    "no array called labeled": ({"val": [1]}, "expected arrays labeled, unlabeled, val; got val"),
}  # fmt: skip
SPLIT = [Bad(f"split file: {name}", ("dataset.split_file={root}/s.npz",), f"dataset.split_file: {{root}}/s.npz: {says}", arrays("s.npz", **content)) for name, (content, says) in SPLITS.items()]  # fmt: skip
SPLIT += [
    Bad("split file: another number", ("dataset.split_file={root}/s.npz", "dataset.num_labels=3"), "dataset.num_labels: 3, but {root}/s.npz names 2 labeled images", arrays("s.npz", labeled=[0, 1])),
    Bad("split file: text", ("dataset.split_file={root}/s.npz",), "dataset.split_file: {root}/s.npz: not a readable .npz file", written("s.npz", "hello")),
    Bad("two channels, strong views", ("method=fixmatch", "dataset=npz", "dataset.path={root}/d.npz", "dataset.num_labels=6"), "method=fixmatch: its strong views are of gray or color images, and these have 2 channels", images(2)),
    Bad("four channels, strong views", ("method=fixmatch", "dataset=npz", "dataset.path={root}/d.npz", "dataset.num_labels=6"), "and these have 4 channels", images(4)),
    Bad("two channels, color statistics", ("dataset=npz", "dataset.path={root}/d.npz", "views.mean=[0.5,0.5,0.5]"), "views.mean: 3 numbers for images of 2 channels", images(2)),
    Bad("two channels, color network", ("dataset=npz", "dataset.path={root}/d.npz", "student.mean=[0.5,0.5,0.5]"), "student.mean: 3 numbers for images of 2 channels; give 2", images(2)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- plug-ins

HEAD = """import torch, timm, numpy as np
from torch import nn
from kdrun import Arrays, DatasetConfig, Method, MethodConfig, Needs, Step, Term, TermConfig, register
from kdrun.config.teacher import TeacherConfig
from kdrun.teachers.kind import TeacherKind
"""
FILE = "plugins: {root}/mine.py"


def plugin(name: str, code: str, says: str, *words: str) -> Bad:
    return Bad(f"plug-in: {name}", ("plugins=[{root}/mine.py]", *words), says, written("mine.py", HEAD + code))


def term(name: str, body: str, says: str) -> Bad:
    code = f"@register('loss', 'mine')\nclass Mine(Term):\n    class Config(TermConfig): ...\n    def forward(self, pair): {body}\n"
    return plugin(f"a term of {name}", code, says, "~loss.ce", "+loss.mine={name: mine, weight: 1.0}")


def method(name: str, body: str, says: str) -> Bad:
    code = "@register('method', 'mine')\nclass Mine(Method):\n    class Config(MethodConfig): ...\n" + body
    return plugin(f"a method: {name}", code, says, "~method", "+method={name: mine}")


def reader(name: str, body: str, says: str) -> Bad:
    code = "@register('dataset', 'mine')\nclass Mine:\n    class Config(DatasetConfig): ...\n" + body
    return plugin(f"a dataset: {name}", code, says, "~dataset", "+dataset={name: mine}")


def teacher(name: str, body: str, says: str) -> Bad:
    code = "@register('teacher', 'mine')\nclass Mine(TeacherKind):\n    class Config(TeacherConfig): ...\n" + body
    return plugin(f"a teacher: {name}", code, says, "~teacher", "+teacher={source: mine}", "method=distill", "loss=kd")


def network(name: str, body: str, says: str) -> Bad:
    code = f"@timm.models.register_model\ndef net_{name}(pretrained=False, num_classes=2, in_chans=3, **_):\n{body}"
    return plugin(f"a network: {name}", code, says, "student=timm", f"student.name=net_{name}")


LOADED = (
    "    @staticmethod\n    def load(config):\n        a, l = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2\n"
)
STEP = "    def step(self, batch, ctx): return Step(self.losses().target(self.pair(batch, ctx)))\n"
PLUGINS = [
    plugin("no Method", "@register('method', 'mine')\nclass Mine:\n    class Config(MethodConfig): ...\n", f"{FILE}: register: Mine must be a class made from Method"),
    plugin("no schema", "@register('method', 'mine')\nclass Mine(Method):\n    class Config: ...\n", f"{FILE}: register: Mine.Config must be a class made from MethodConfig"),
    plugin("a schema that is a number", "@register('loss', 'mine')\nclass Mine(Term):\n    Config = 5\n    def forward(self, pair): ...\n", f"{FILE}: register: Mine.Config must be a class made from TermConfig"),
    plugin("no class", "def mine(): ...\nmine.Config = 1\nregister('method', 'mine')(mine)\n", f"{FILE}: register: method 'mine': 'mine' is no class"),
    plugin("exits", "import sys\nsys.exit(3)\n", f"{FILE}, line 7: leaves Python (SystemExit: 3)"),
    plugin("exits without a word", "raise SystemExit\n", f"{FILE}, line 6: leaves Python (SystemExit: )"),
    plugin("interrupts", "raise KeyboardInterrupt\n", f"{FILE}, line 6: KeyboardInterrupt:"),
    plugin("an exception of its own", "class Mine(BaseException): ...\nraise Mine('x')\n", f"{FILE}, line 7: Mine: x"),
    plugin("an error of many lines", "raise ValueError('a\\nb\\nc')\n", f"{FILE}, line 6: ValueError: a b c"),
    plugin("recursion", "def f(): f()\nf()\n", f"{FILE}, line 6: RecursionError"),
    plugin("no Python", "def (\n", f"{FILE}: SyntaxError"),
    plugin("null bytes", "\0\n", f"{FILE}: SyntaxError"),
    plugin("a path as name", "@register('method', '../../..')\nclass Mine(Method):\n    class Config(MethodConfig): ...\n", f"{FILE}: register: method '../../..' is no plain word"),
    plugin("a name with a slash", "@register('dataset', 'a/b')\nclass Mine:\n    class Config(DatasetConfig): ...\n", f"{FILE}: register: dataset 'a/b' is no plain word"),
    plugin("a name with a line break", "@register('loss', 'a\\nb')\nclass Mine(Term):\n    class Config(TermConfig): ...\n", f"{FILE}: register: loss 'a\\nb' is no plain word"),
    plugin("a name of nothing", "@register('loss', '')\nclass Mine(Term):\n    class Config(TermConfig): ...\n", f"{FILE}: register: loss '' is no plain word"),
    plugin("a name of 300 letters", "@register('dataset', 'a' * 300)\nclass Mine:\n    class Config(DatasetConfig): ...\n", f"{FILE}: register: dataset '{'a' * 80}' is no plain word"),
    plugin("a name that is a number", "@register('loss', 5)\nclass Mine(Term):\n    class Config(TermConfig): ...\n", f"{FILE}: register: loss '5' is no plain word"),
    plugin("a term without forward", "@register('loss', 'mine')\nclass Mine(Term):\n    class Config(TermConfig): ...\n", f"{FILE}: register: Mine lacks forward()"),
    plugin("a teacher without build", "@register('teacher', 'mine')\nclass Mine(TeacherKind):\n    class Config(TeacherConfig): ...\n", f"{FILE}: register: Mine lacks build()"),
    plugin("a dataset without load", "@register('dataset', 'mine')\nclass Mine:\n    class Config(DatasetConfig): ...\n", f"{FILE}: register: Mine needs load(config) or files(config)"),
    term("(B, C)", "return pair.student.logits", "loss.mine: mine gives (4, 10), expected (4,), a loss for each image, or ()"),
    term("no gradient", "return torch.zeros(len(pair.index))", "loss.mine: mine gives a loss without a gradient"),
    term("what is detached", "return pair.student.logits.sum(1).detach()", "loss.mine: mine gives a loss without a gradient"),
    term("a float", "return 1.0", "loss.mine: mine gives a float, expected a tensor (B,) or ()"),
    term("nothing", "return None", "loss.mine: mine gives a NoneType, expected a tensor"),
    term("a list", "return [pair.student.logits.sum()]", "loss.mine: mine gives a list, expected a tensor"),
    term("integers", "return pair.student.logits.sum(1).long()", "loss.mine: mine gives torch.int64, expected floating-point numbers"),
    term("another device", "return torch.zeros(len(pair.index), device='cpu', requires_grad=True)", "loss.mine: mine gives its loss on cpu, and the logits are on"),
    term("another batch", "return pair.student.logits.sum(1)[:1]", "loss.mine: mine gives (1,), expected (4,)"),
    term("an attribute that is not there", "return pair.student.nix", f"{FILE}, line 9: AttributeError: 'Output' object has no attribute 'nix'"),
    term("an error", "raise RuntimeError('boo')", f"{FILE}, line 9: RuntimeError: boo"),
    term("a teacher that it has not said", "return pair.teacher.logits.sum(1)", f"{FILE}, line 9: AttributeError: 'NoneType' object has no attribute 'logits'"),
    method("no step", "", "method=mine: it has no step(batch, ctx)"),
    method("a step of nothing", "    def step(self, batch, ctx): return None\n", "method=mine: step gives a NoneType, expected Step"),
    method("a step of a mapping", "    def step(self, batch, ctx): return {'a': 1}\n", "method=mine: step gives a dict, expected Step"),
    method("no losses", "    def step(self, batch, ctx): return Step({})\n", "method=mine: step gives no losses"),
    method("a loss of each image", "    def step(self, batch, ctx): return Step({'a': self.students['student'](batch['labeled'].views['weak']).logits.sum(1)})\n", "method=mine: step: the loss 'a' is float32 (4,), expected a scalar tensor"),
    method("no gradient", "    def step(self, batch, ctx): return Step({'a': torch.zeros(())})\n", "method=mine: step: no loss has a gradient"),
    method("a stream that is not there", "    def step(self, batch, ctx): return batch['nix']\n", f"{FILE}, line 9: KeyError: 'nix'"),
    method("needs of nothing", "    @classmethod\n    def needs(cls, config): return None\n" + STEP, "plugins: mine.py: AttributeError"),
    method("needs an unknown stream", "    @classmethod\n    def needs(cls, config): return Needs(streams={'nix': ('weak',)})\n" + STEP, "stream nix: unknown (allowed: labeled, unlabeled)"),
    method("requires a list", STEP + "    @classmethod\n    def requires(cls, config): return [1]\n", "plugins: "),
    method("contradictions of nothing", STEP + "    @classmethod\n    def contradictions(cls, config): return None\n", "plugins: mine.py: TypeError"),
    method("a batch of none", STEP + "    @classmethod\n    def batch_sizes(cls, config): return {'labeled': 0}\n", "method=mine: batch_sizes must be 1 or more, got {'labeled': 0}"),
    method("an __init__ of its own", STEP + "    def __init__(self): pass\n", "method=mine: cannot be built: TypeError"),
    method("predictions of a list", STEP + "    def predict(self, view): return [1]\n", "method=mine: predict gives a list"),
    method("predictions that name a path", STEP + "    def predict(self, view): return {'../../x': self.students['student'](view).logits}\n", "method=mine: predict: '../../x' names a file"),
    method("predictions of other classes", STEP + "    def predict(self, view): return {'student': self.students['student'](view).logits[:, :3]}\n", "method=mine: predict: student is float32 (4, 3), expected logits (B, 10)"),
    reader("nothing", "    @staticmethod\n    def load(config): return None\n", "dataset=mine: load gives a NoneType, expected Arrays"),
    reader("lists", "    @staticmethod\n    def load(config): return Arrays([[1]], [0], [[1]], [0], ('a', 'b'), (.5,), (.5,))\n", "dataset: train_images: expected a NumPy array, got a list"),
    reader("an error", "    @staticmethod\n    def load(config): return 1 / 0\n", "dataset=mine: {root}/mine.py, line 10: ZeroDivisionError"),
    reader("labels of fractions", LOADED + "        return Arrays(a, l / 2, a, l, ('a', 'b'), (.5,), (.5,))\n", "dataset: train_labels: expected int64, got float64"),
    reader("statistics of two channels", LOADED + "        return Arrays(a, l, a, l, ('a', 'b'), (.5, .5), (.5,))\n", "dataset: mean: expected (1,) numbers"),
    reader("no names", LOADED + "        return Arrays(a, l, a, l, 5, (.5,), (.5,))\n", "dataset: class_names: expected a tuple of texts"),
    reader("no test images", LOADED + "        return Arrays(a, l, a[:0], l[:0], ('a', 'b'), (.5,), (.5,))\n", "dataset: test: no images"),
    teacher("nothing", "    def build(self, *_): ...\n    def outline(self, factory): return None\n", "teacher.source: mine: outline() gives a NoneType, expected a network"),
    teacher("a layer", "    def build(self, *_): ...\n    def outline(self, factory): return nn.Linear(3, 4)\n", "teacher.source: mine: outline() gives a Linear, expected a network"),
    teacher("an error", "    def build(self, *_): ...\n    def outline(self, factory): raise ValueError('x')\n", "method=distill: cannot be built: ValueError in {root}/mine.py, line 10: x"),
    network("nothing", "    return None\n", "student.name or teacher.model.name: net_nothing() does not return a torch.nn.Module"),
    network("bare", "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n", "net_bare lacks get_classifier()"),
    network("wrong", "    1 / 0\n", "net_wrong: the network cannot be built with args {}: ZeroDivisionError"),
    network("narrow", "    m = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)); m.get_classifier = lambda: m[1]; return m\n", "net_narrow gives (2, 3), expected (B, 10)"),
]  # fmt: skip

CASES: list[Bad] = [*NUMBERS, *GROUPS, *KEYS, *PATHS, *BROKEN, *SECRET, *SPLIT, *PLUGINS]
