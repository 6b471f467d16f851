"""The run key: the hash of everything that can change a result, and the directory that it names."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdrun.config.dataset import DatasetConfig
from kdrun.config.parts import UncertaintyConfig
from kdrun.config.run import RunConfig
from kdrun.config.teacher import RecipeConfig, TaughtConfig
from kdrun.core.errors import MissingFile
from kdrun.core.hashing import content_hash, json_hash
from kdrun.core.paths import HERE
from kdrun.core.registry import lookup, plugin_hashes
from kdrun.core.schema import FileContent, OutsideKey, Schema, marker

KEY_VERSION = 1  # raise it when a default changes its meaning: all keys change with it


def run_key(config: RunConfig) -> str:
    """12 hex digits that name this run: equal for equal results, whatever the paths, device or tracker.

    Fields equal to their default are left out, so a field added later changes no key where it keeps the old behavior. A
    published dataset counts by its name, and where other files lie in its place by their listing too.
    """
    told = _counted(config)
    if config.dataset.split_seed == config.seed:  # the same draw as null
        told["config"]["dataset"].pop("split_seed", None)
    return json_hash(told)


def seedless_key(config: RunConfig) -> str:
    """As `run_key`, of all runs that differ in nothing but the seed."""
    told = _counted(config)
    told["config"].pop("seed", None)
    source = getattr(config.method, "source", None)
    if isinstance(source, RunConfig):  # the run that is evaluated has the same seed
        told["config"]["method"]["source_key"] = seedless_key(source)
    return json_hash(told)


def _counted(config: RunConfig) -> dict[str, Any]:
    """All that a result depends on."""
    content = _content(config)
    adaptive = config.schedule.decay.name == "plateau" or any(r.kind == "adaptive" for r in config.ramps.values())
    if not adaptive and not config.needs.evaluations:
        # evaluations only look on
        for cadence in ("eval_every_steps", "eval_every_epochs"):
            content["schedule"].pop(cadence, None)
    if config.views.weak.scale is None:  # the same pixels, streamed or not
        content["dataset"].pop("stream", None)
    if not getattr(config.dataset, "skip_unreadable", False):  # a file above the limit ends the run
        content["dataset"].pop("max_pixels", None)
    told = {"version": KEY_VERSION, "config": content, "plugins": plugins_of(config)}
    if config.debug.on:
        told["code"] = content_hash(str(HERE), "kdrun", FileContent(whole=True, suffixes=frozenset({".py"})))
    listing = data_identity(config.dataset)
    return told if listing is None else {**told, "listing": listing}


def data_identity(dataset: DatasetConfig) -> str | None:
    """What the key has beside the configuration of a dataset, by the `identity` of its class; None: nothing."""
    identity = getattr(lookup("dataset", dataset.name, "dataset.name"), "identity", None)
    found: str | None = None if identity is None else identity(dataset)
    return found


def run_dir(config: RunConfig, key: str | None = None) -> str:
    """`runs/<method>/<dataset>/n<labels>/s<seed>-<key>`, below `execution.outputs`.

    Args:
        key: the run key, where it is known.
    """
    labels = str(config.dataset.num_labels or "all").replace("/", "-per-").replace("%", "pct")
    key = run_key(config) if key is None else key
    return f"runs/{config.method.name}/{config.dataset.name}/n{labels}/s{config.seed}-{key}"


def run_directory(config: RunConfig) -> Path:
    """Content-named directory of the run."""
    return Path(config.execution.outputs).expanduser() / run_dir(config)


def _content(value: Any, key: str = "") -> Any:
    if isinstance(value, Schema):
        out = {}
        for name, field in type(value).model_fields.items():
            item, where = getattr(value, name), f"{key}.{name}".lstrip(".")
            if marker(field, OutsideKey) or (
                not field.is_required() and item == field.get_default(call_default_factory=True)
            ):
                continue
            file = marker(field, FileContent)
            text = item if file and isinstance(item, str) else None
            content = _content(item, where) if file is None or text is None else _of_file(text, where, file, value)
            # a node may differ from its default in nothing that counts
            if content != {} or field.is_required() or not isinstance(item, Schema):
                out[name] = content
        return out
    if isinstance(value, Mapping):
        return {str(k): _content(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        alone = key == "students" and len(value) == 1  # by the words of the command line
        return [_content(v, "student" if alone else f"{key}.{i}") for i, v in enumerate(value)]
    return value


def _of_file(path: str, where: str, file: FileContent, owner: Schema) -> str:
    try:
        return content_hash(path, where, file)
    except MissingFile as error:
        url = getattr(owner, "url", None)
        if url is None:
            raise
        raise MissingFile(f"{error}; kdrun download gets it from {url}", file=error.file) from None


def named_files(config: RunConfig) -> list[tuple[str, str, FileContent]]:
    """Dotted key, path and marker of each file or folder that the run key has the content of."""
    return list(_named(config, ""))


def _named(value: Any, key: str) -> Iterator[tuple[str, str, FileContent]]:
    if isinstance(value, Schema):
        for name, field in type(value).model_fields.items():
            item, file = getattr(value, name), marker(field, FileContent)
            if file is None:
                yield from _named(item, f"{key}{name}.")
            elif isinstance(item, str):
                yield f"{key}{name}", item, file
    elif isinstance(value, Mapping | list):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _named(item, f"{key}{name}.")


def plugins_of(config: RunConfig) -> list[tuple[str, str]]:
    """File stem and sha256 of the plug-in files that this run uses."""
    return plugin_hashes(part_classes(config)) if config.plugins else []


def part_classes(config: RunConfig) -> list[Any]:
    """Every registered class or function that this run is made of."""
    import timm

    models, teachers = [*config.students, *config.teacher.models], config.teacher.parts()
    recipes = [part.schedule for part in teachers.values() if isinstance(part, RecipeConfig)]
    schedules = [config.schedule, *(schedule for schedule in recipes if schedule is not None)]
    trained = [(f"{key}.loss", getattr(part, "loss", None)) for key, part in teachers.items()]
    taught = [term for part in teachers.values() if isinstance(part, TaughtConfig) for term in part.terms.values()]
    return [
        config.method_class,
        *(type(kind) for kind in config.teacher.kinds),
        lookup("dataset", config.dataset.name, "dataset.name"),
        *(lookup("decay", schedule.decay.name, "schedule.decay.name") for schedule in schedules),
        *(lookup("loss", term.name, "loss") for term in (*config.losses.values(), *taught)),
        *(lookup("loss", name, key) for key, name in trained if isinstance(name, str)),
        *(timm.model_entrypoint(model.name) for model in models),
        *(
            lookup("uncertainty", part.name, "method")
            for _, part in config.method
            if isinstance(part, UncertaintyConfig)
        ),
    ]
