"""Fetch what runs need before they run, where there is a network: data sets and published weights.

kdrun download experiment=fixmatch/cifar10_250      what the composed run needs, and what is required first
kdrun download dataset=food101,dtd student=timm student.name=resnet18 student.pretrained=true
kdrun download table=ttm_same                       what the runs of conf/table/ttm_same.yaml need
kdrun download experiment=demo dry=true             list only

Lists everything first: present, missing, or to be put there by hand. What is complete is not fetched again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from kdrun.cli.own import own_conf
from kdrun.config.compose import Composer
from kdrun.config.dataset import DatasetConfig, FilesConfig, facts_of
from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.later import later
from kdrun.core.quantities import readable
from kdrun.core.registry import lookup
from kdrun.core.schema import FileContent, Schema, from_arguments, marker
from kdrun.data.download import fetch_file
from kdrun.results.plan import configs_of as planned_configs
from kdrun.results.spec import table_spec

if TYPE_CHECKING:
    import torch

    from kdrun.models.network import build_network
    from kdrun.training.shifted import FOLDERS, SIZES
else:
    torch = later("torch")
    build_network = later("kdrun.models.network", "build_network")
    FOLDERS, SIZES = later("kdrun.training.shifted", "FOLDERS", "SIZES")


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


@own_conf
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
        return [run for name, spec in firsts.items() for _, _, [run] in planned_configs(name, spec, Path("outputs"))]
    with Composer() as composer:
        jobs = composer.expand(list(words), True)
        if jobs is None:
            raise ConfigError("hydra/sweeper: only Hydra's basic sweeper can be composed here")
        return [composer.typed(job) for job in jobs]


def needs_of(configs: Sequence[RunConfig]) -> Iterator[Need]:
    """Each thing once, of the runs and of the runs that they require.

    Presence is what the run itself would find: the readers look at their files, with downloads switched off. Checks of
    hashes are those of the readers and of the hub.
    """
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
    for key, path, url in _files(config):
        yield f"file {path}", lambda key=key, path=path, url=url: _file(key, path, url)  # type: ignore[misc]
    for name in config.evaluate.sets:
        place = Path(config.evaluate.root).expanduser() / FOLDERS[name]
        yield f"set {place}", lambda name=name, place=place: _folder(name, place)  # type: ignore[misc]
    for model in [*config.students, *(model for kind in config.teacher.kinds for model in kind.published)]:
        if model.pretrained and model.file is None and model.name != "open_clip":
            yield f"weights {model.name}", lambda model=model: _weights(model)  # type: ignore[misc]
    required: dict[str, RunConfig] = config.method_class.requires(config)
    for other in required.values():
        yield from _parts(other)


def _files(config: RunConfig) -> Iterator[tuple[str, str, str | None]]:
    """(key, path, where it is published or None) of single files and folders that the user has to give."""

    data, several = config.dataset, len(config.students) > 1
    yield from _of_teachers(config.teacher)
    given = [
        ("dataset.split_file", data.split_file), ("dataset.unlabeled", data.unlabeled),
        ("dataset.coop_split", data.coop_split if isinstance(data, FilesConfig) else None),
        ("evaluate.corruptions", config.evaluate.corruptions),
        *((f"students.{k}.file" if several else "student.file", model.file) for k, model in enumerate(config.students)),
    ]  # fmt: skip
    yield from ((key, path, None) for key, path in given if path is not None)


def _of_teachers(teacher: TeacherConfig) -> Iterator[tuple[str, str, str | None]]:
    for key, part in teacher.parts().items():
        for name, field in type(part).model_fields.items():
            file, path = marker(field, FileContent), getattr(part, name)
            if file and isinstance(path, str) and not (file.or_name and not os.path.exists(os.path.expanduser(path))):
                yield f"{key}.{name}", path, getattr(part, "url", None) if name == "path" else None


def _file(key: str, path: str, url: str | None) -> Need:
    place = Path(path).expanduser()
    if place.exists():
        return Need(f"{key}={path}", None, None)
    if url is None:
        return Need(f"{key}={path}", None, f"{path} is not there; put it there, or give another {key}")
    return Need(f"{key}={path} ({url})", None, f"{path} is not there", lambda: fetch_file(url, place, key))


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
        look(config.offline())
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
