"""What runs need from elsewhere: listed with what is there, what can be fetched, and what goes where by hand.

Presence is what the run itself would find: the readers look at their files, with downloads switched off. Checks of
hashes are those of the readers and of the hub.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from kdrun.config.compose import Composer
from kdrun.config.dataset import DatasetConfig, FilesConfig, facts_of
from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup
from kdrun.core.schema import Schema, from_arguments
from kdrun.data.load import OUTPUTS
from kdrun.data.packed import readable
from kdrun.results.plan import configs_of as planned_configs
from kdrun.results.plan import table_spec
from kdrun.training.shifted import FOLDERS, SIZES


@dataclass(frozen=True)
class Need:
    """One thing that a run reads."""

    what: str
    size: float | None
    """Bytes to fetch, about; None: not known."""
    missing: str | None
    """Why it cannot be read, and what to put where; None: it is there."""
    fetch: Callable[[], object] | None = None
    """Gets it; None: nobody offers it."""

    @property
    def state(self) -> str:
        if self.missing is None:
            return "present"
        return "by hand" if self.fetch is None else "missing"

    def line(self) -> str:
        size = "" if self.size is None else readable(self.size)
        told = f"  {self.missing}" if self.missing is not None and self.fetch is None else ""
        return f"{self.state:<8} {size:>9}  {self.what}{told}"


class Options(Schema):
    """Its own arguments; all others are `table=<name>` or a command line of `kdrun.train`."""

    dry: bool = False
    """List what is needed, and fetch nothing."""


def main(arguments: Sequence[str]) -> str:
    """Prints the list, fetches what is missing unless `dry=true`.

    Raises:
        KdrunError: one line for each thing that is still missing, with what to put where.
    """
    dry = from_arguments(Options, [word for word in arguments if word.partition("=")[0] in Options.model_fields]).dry
    words = [word for word in arguments if word.partition("=")[0] not in Options.model_fields]
    needs = list(needs_of(configs_of(words)))
    for need in needs:
        print(need.line(), flush=True)
    missing = [need for need in needs if need.missing is not None]
    fetched = [need.size for need in missing if need.fetch is not None]
    total, unknown = sum(size or 0.0 for size in fetched), fetched.count(None)
    said = f"{len(needs) - len(missing)} of {len(needs)} present" + (f", {readable(total)} to fetch" if total else "")
    said += f", {unknown} of unknown size" if unknown else ""
    if dry:
        return said
    failed = []
    for need in missing:
        if need.fetch is None:
            failed.append(f"{need.what}: {need.missing}")
            continue
        print(f"fetching {need.what}", flush=True)
        try:
            need.fetch()
        except KdrunError as error:
            failed += [f"{need.what}: {line}" for line in str(error).splitlines()]
    if failed:
        raise KdrunError("\n".join(failed))
    return f"{len(needs)} of {len(needs)} present"


def configs_of(words: Sequence[str]) -> list[RunConfig]:
    """The runs of `table=<name>`, or those that overrides compose (commas make several), without their seeds."""
    tables = [word.removeprefix("table=") for word in words if word.startswith("table=")]
    if tables:
        if len(tables) != len(words):
            raise ConfigError(f"table={tables[0]}: its runs are those of conf/table; leave out the other arguments")
        specs = {name: table_spec(name) for name in tables}
        firsts = {name: spec.replace(seeds=spec.seeds[:1]) for name, spec in specs.items()}  # seeds need the same
        return [run for name, spec in firsts.items() for _, _, [run] in planned_configs(name, spec, OUTPUTS)]
    with Composer() as composer:
        jobs = composer.expand(list(words), True)
        if jobs is None:
            raise ConfigError("hydra/sweeper: only Hydra's basic sweeper can be composed here")
        return [composer.typed(job) for job in jobs]


def needs_of(configs: Sequence[RunConfig]) -> Iterator[Need]:
    """Each thing once, of the runs and of the runs that they require."""
    seen: set[str] = set()
    for config in configs:
        for key, make in _parts(config):
            if key not in seen:
                seen.add(key)
                yield make()


def _parts(config: RunConfig) -> Iterator[tuple[str, Callable[[], Need]]]:
    """(what tells it from others, how it is looked at)."""
    data = config.dataset
    plain = data.replace(num_labels=None, split_seed=None, split_file=None, val_seed=0, val_fraction=0.0)
    yield f"dataset {plain.model_dump_json()}", lambda: _dataset(data)
    for key, path in _files(config):
        yield f"file {key} {path}", lambda key=key, path=path: _file(key, path)  # type: ignore[misc]
    for name in config.evaluate.sets:
        place = Path(config.evaluate.root).expanduser() / FOLDERS[name]
        yield f"set {place}", lambda name=name, place=place: _folder(name, place)  # type: ignore[misc]
    for model in [*config.students, *_published(config.teacher)]:
        if model.pretrained and model.file is None and model.name != "open_clip":
            yield f"weights {model.name}", lambda model=model: _weights(model)  # type: ignore[misc]
    required: dict[str, RunConfig] = config.method_class.requires(config)
    for other in required.values():
        yield from _parts(other)


def _published(teacher: TeacherConfig) -> list[ModelConfig]:
    """The networks of a teacher whose published weights are read; one that is trained is a run of its own."""
    if teacher.source == "ensemble":
        return [model for member in teacher.members for model in _published(member)]
    return [teacher.model] if teacher.source == "timm" and teacher.model is not None else []


def _files(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, path) of single files and folders that the user has to give."""

    def teachers(teacher: TeacherConfig, key: str) -> Iterator[tuple[str, str | None]]:
        yield f"{key}.path", teacher.path
        for i, member in enumerate(teacher.members):
            yield from teachers(member, f"{key}.members.{i}")

    data = config.dataset
    given = [
        ("dataset.split_file", data.split_file), ("dataset.unlabeled", data.unlabeled),
        ("dataset.coop_split", data.coop_split if isinstance(data, FilesConfig) else None),
        ("evaluate.corruptions", config.evaluate.corruptions), *teachers(config.teacher, "teacher"),
        *(("student.file", model.file) for model in config.students),
    ]  # fmt: skip
    yield from ((key, path) for key, path in given if path is not None)


def _file(key: str, path: str) -> Need:
    there = os.path.exists(os.path.expanduser(path))
    return Need(f"{key}={path}", None, None if there else f"{path} is not there; put it there, or give another {key}")


def _folder(name: str, place: Path) -> Need:
    missing = None if place.is_dir() else f"{place} is not there; put the content of its archive there"
    return Need(f"evaluate.sets: {name}", SIZES.get(name), missing)


def _dataset(config: DatasetConfig) -> Need:
    read: Any = lookup("dataset", config.name, "dataset.name")
    look = read.files if isinstance(config, FilesConfig) else read.load
    offered = bool(getattr(config, "download", False))
    place = getattr(config, "root", None) or getattr(config, "path", None)
    what = f"dataset {config.name}" + (f" in {place}" if place else "")
    try:
        look(config.replace(download=False) if offered else config)
        missing = None
    except ConfigError as error:
        missing = error.lines[0] + (f" (and {len(error.lines) - 1} more)" if len(error.lines) > 1 else "")
    return Need(what, facts_of(config.name).download, missing, (lambda: look(config)) if offered else None)


def _weights(model: ModelConfig) -> Need:
    import timm

    published: Any = timm.get_pretrained_cfg(model.name)
    place = published.hf_hub_id or published.url
    missing = None if _stored(published) else f"{place} is not stored here"

    def fetch() -> object:
        from kdrun.models.network import build_network

        # built as a run builds it, so that what is fetched is what it will look for
        bare = model.replace(head="linear", trainable="all", head_warmup=None)
        return build_network(
            bare, num_classes=published.num_classes, in_chans=3, mean=published.mean, std=published.std, seed=0
        )

    try:
        with torch.device("meta"):
            size = sum(p.numel() * p.element_size() for p in timm.create_model(model.name, **model.args).parameters())
    except Exception:  # arguments that the network does not take: the run says so
        size = None
    return Need(f"weights {model.name} ({place})", size, missing, fetch)


def _stored(published: Any) -> bool:
    """Whether timm would find the weights without a network."""
    if published.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        names = (published.hf_hub_filename or "model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(published.hf_hub_id, name), str) for name in names)
    stored = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(published.url or "").path).name
    return bool(published.url) and stored.is_file()
