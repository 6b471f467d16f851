"""From plain nodes, as Hydra composes them or a record keeps them, to a `RunConfig`, and back."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kdrun.config.effective import effective
from kdrun.config.environment import asked_again, hidden, resolved
from kdrun.config.model import ModelConfig
from kdrun.config.networks import own_networks
from kdrun.config.parts import TermConfig, TrackerConfig
from kdrun.config.run import DebugConfig, EvaluateConfig, ExecutionConfig, RunConfig
from kdrun.config.schedule import RampConfig, ScheduleConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.config.values import refuse_values
from kdrun.config.views import ViewsConfig
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.paths import CONF_DIR, conf_file, conf_folders
from kdrun.core.registry import load_plugins, lookup, registered
from kdrun.core.schema import S, Schema, build
from kdrun.core.texts import mapping_of, text_of

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")  # of a term or a ramp


def to_config(composed: DictConfig) -> RunConfig:
    """Type and check a composed Hydra config. Raises ConfigError with one line for each problem."""
    try:
        if not OmegaConf.is_dict(composed.get("execution")):
            raise ConfigError("execution: missing; it must be the mapping of conf/config.yaml")
        _plugins(composed.get("plugins"))  # before `${beside:...}` asks for the class of a term
        with _without_hydra(composed):
            node, written = resolved(composed)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{key}: missing; write {key}=<value>") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{key}: {_first_line(error)}") from None
    except RecursionError:
        raise ConfigError("config: keys refer to each other in a circle, or too deep; write them flatter") from None
    refuse_values(node)
    return from_nodes(node, written)


@contextmanager
def _without_hydra(composed: DictConfig) -> Iterator[None]:
    """Take Hydra's node out for a while: it asks for the run directory, and so for what is being typed."""
    with flag_override(composed, ["struct", "readonly", "no_deepcopy_set_nodes"], [False, False, True]):
        hydra: Any = composed.pop("hydra", None)
        try:
            yield
        finally:
            if hydra is not None:
                hydra._set_parent(None)  # else it would be copied
                composed["hydra"] = hydra


def from_record(node: dict[str, Any]) -> RunConfig:
    """The configuration that a record keeps; what it leaves to the environment is asked there again."""
    node, written = asked_again(node)
    dataset = node.get("dataset")
    if isinstance(dataset, Mapping) and dataset.get("name") == "imagefolder":
        node["dataset"] = {"exif": "stored", **dataset}  # as it was when records did not say it
    return from_nodes(node, written)


def from_nodes(node: dict[str, Any], written: Mapping[str, str] | None = None) -> RunConfig:
    """Type and check plain nodes, as Hydra composes them (`loss`, `student`) or as config.yaml records them.

    Args:
        written: as `RunConfig.written`.
    """
    known = {"method", "dataset", "views", "teacher", "student", "students", "loss", "schedule", "seed"}
    known |= {
        "tracker",
        "execution",
        "evaluate",
        "plugins",
        "coefficients",
        "settings",
        "experiment",
        "ramps",
        "engine",
        "search",
        "objective",
        "debug",
    }
    errors = [f"{key}: unknown key{allowed(key, known)}" for key in node if key not in known]
    absent = [key for key in ("method", "dataset", "schedule") if not node.get(key)]
    absent += ["loss"] if node.get("loss") is None else []  # a method that trains nothing has no terms
    errors += [f"{key}: missing; choose one" for key in absent]
    if errors:
        raise ConfigError(*errors)
    parts: dict[str, Any] = {"plugins": _plugins(node.get("plugins")), "seed": node.get("seed", 0)}
    parts["written"] = dict(written or {})

    def collect(name: str, make: Any) -> None:
        try:
            parts[name] = make()
        except ConfigError as error:
            errors.extend(error.lines)

    collect("method", lambda: part_config("method", node["method"], "method"))
    collect("dataset", lambda: part_config("dataset", node["dataset"], "dataset"))
    collect("losses", lambda: _losses(node["loss"], "loss"))
    collect("students", lambda: _students(node))
    collect("ramps", lambda: _ramps(node.get("ramps") or {}))
    collect("schedule", lambda: build(ScheduleConfig, _decay(node["schedule"], "schedule"), "schedule"))
    collect("teacher", lambda: teacher_of(node.get("teacher") or {}))
    collect("tracker", lambda: tracker_of(node.get("tracker") or {}))
    for name, schema in (
        ("views", ViewsConfig),
        ("execution", ExecutionConfig),
        ("evaluate", EvaluateConfig),
        ("debug", DebugConfig),
    ):
        collect(name, lambda name=name, schema=schema: build(schema, node.get(name) or {}, name))
    if errors:
        raise ConfigError(*errors)
    config = build(RunConfig, parts, "")
    check_coefficients(node.get("coefficients") or {})
    check_settings(node.get("settings") or {})
    return effective(config)


def _plugins(node: Any) -> list[str]:
    """The users' own files, loaded."""
    plugins = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node or []
    if not isinstance(plugins, list) or not all(isinstance(p, str) for p in plugins):
        raise ConfigError(f"plugins: expected a list of Python files, got {plugins!r}")
    load_plugins(plugins)
    return plugins


def part_config(kind: str, node: Any, key: str) -> Any:
    """The typed configuration of a part that plugs in."""
    if not isinstance(node, Mapping) or "name" not in node:
        raise ConfigError(f"{key}: expected a mapping with a name, got {node!r}; choose a file of conf/{kind}")
    return build(lookup(kind, node["name"], f"{key}.name").Config, node, key)


def _losses(node: Any, key: str) -> dict[str, TermConfig]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}: expected a mapping of terms, got {node!r}")
    errors: list[str] = []
    terms: dict[str, TermConfig] = {}
    for label, term in node.items():
        if NAME.fullmatch(str(label)) is None or hasattr(dict, str(label)):
            errors.append(
                f"{key}.{str(label)[:80]}: not a name for a term; take letters, digits, _ and -, e.g. its own"
            )
            continue
        try:
            terms[str(label)] = part_config("loss", term, f"{key}.{label}")
        except ConfigError as error:
            errors += error.lines
    if errors:
        raise ConfigError(*errors)
    return terms


def _decay(schedule: Any, key: str) -> Any:
    """A schedule's node with its decay typed."""
    if not isinstance(schedule, Mapping) or not schedule.get("decay"):
        return schedule
    return {**schedule, "decay": part_config("decay", schedule["decay"], f"{key}.decay")}


def teacher_of(node: Any, key: str = "teacher") -> TeacherConfig:
    """The typed configuration of a teacher: the keys of the kind that `source` names, its own teachers typed alike.

    Args:
        key: where it stands, for messages.

    Raises:
        ConfigError: one line for each mistake.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}: expected a mapping with a source, got {node!r}; choose a file of conf/teacher")
    source = node.get("source", "none")
    schema: type[TeacherConfig] = lookup("teacher", source, f"{key}.source").Config
    given = _own_keys(node, schema, key)
    if "schedule" in given:
        given["schedule"] = _decay(given["schedule"], f"{key}.schedule")
    if isinstance(given.get("model"), str):
        given["model"] = _named_network(given["model"])
    if isinstance(given.get("members"), list):
        given["members"] = [teacher_of(member, f"{key}.members.{i}") for i, member in enumerate(given["members"])]
    if "teacher" in given:
        given["teacher"] = teacher_of(given["teacher"], f"{key}.teacher")
    if "terms" in given:
        given["terms"] = _losses(given["terms"], f"{key}.terms")
    return build(schema, given, key)


def _own_keys(node: Mapping[str, Any], schema: type[TeacherConfig], key: str) -> dict[str, Any]:
    """The keys of one kind of teacher, and those that no kind has.

    YAML and old records list the keys of all kinds: one that only others have is left out where it stands at its
    default, else refused.
    """
    kinds = {kind: cls.Config.model_fields for kind, cls in registered("teacher").items()}  # type: ignore[attr-defined]
    own, out, errors = schema.model_fields, {}, []
    for name, value in node.items():
        if name in own:
            if value is not None or not own[name].is_required():  # else it is said as what it is: missing
                out[name] = value
            continue
        owners = [kind for kind, fields in sorted(kinds.items()) if name in fields]
        if not owners:
            out[name] = value
        elif not any(_at_default(kinds[kind][name], value) for kind in owners):
            have = " and ".join(owners) + (" have it" if len(owners) > 1 else " has it")
            member = f" (of a member: {key}.members.0.{name})" if "members" in own else ""
            errors.append(f"{key}.{name}: not for source={node.get('source', 'none')}; source={have}{member}")
    if errors:
        raise ConfigError(*errors)
    return out


def _at_default(field: FieldInfo, value: Any) -> bool:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, Schema) and isinstance(value, Mapping):
        try:
            return type(default).model_validate(dict(value)) == default
        except ValidationError:
            return False
    return bool(value == default)


def tracker_of(node: Any) -> TrackerConfig:
    """The typed configuration of a tracker, and of those beside it. Raises ConfigError: a line for each mistake."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"tracker: expected a mapping with a name, got {node!r}; choose a file of conf/tracker")
    given = {"name": "none", **node}
    if given["name"] == "none":  # another one's keys, of an experiment or an old record, ask nothing of it
        others = {key for cls in registered("tracker").values() for key in cls.Config.model_fields}  # type: ignore[attr-defined]
        given = {key: value for key, value in given.items() if key in TrackerConfig.model_fields or key not in others}
    also = given.get("also")
    if isinstance(also, list):
        beside = [dict(item) if isinstance(item, Mapping) else {"name": item} for item in also]
        names = [given["name"], *(item.get("name") for item in beside)]
        if twice := [name for k, name in enumerate(names) if name in names[:k]]:
            raise ConfigError(f"tracker.also: {twice[0]} is there twice; name each tracker once")
        if deeper := [k for k, item in enumerate(beside) if item.get("also")]:
            raise ConfigError(f"tracker.also.{deeper[0]}.also: those beside a tracker stand in one list, tracker.also")
        given["also"] = [part_config("tracker", item, f"tracker.also.{k}") for k, item in enumerate(beside)]
    found: TrackerConfig = part_config("tracker", given, "tracker")
    return found


def _ramps(node: Any) -> dict[str, RampConfig]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"ramps: expected a mapping such as {{alpha: {{key: loss.ce.weight, end: 0}}}}, got {node!r}")
    if wrong := [str(name) for name in node if NAME.fullmatch(str(name)) is None]:
        raise ConfigError(f"ramps.{wrong[0][:80]}: not a name for a ramp; take letters, digits, _ and -")
    return {str(name): build(RampConfig, ramp, f"ramps.{name}") for name, ramp in node.items()}


def _students(node: dict[str, Any]) -> list[ModelConfig]:
    given = node.get("students") or [node.get("student")]
    if node.get("students") == [] and "student" not in node:
        given = []  # the record of a method that has none
    if not isinstance(given, list):
        raise ConfigError(f"students: expected a list of names or mappings, got {given!r}")
    out = []
    for i, item in enumerate(given):
        key = "student" if not node.get("students") else f"students.{i}"
        out.append(build(ModelConfig, _named_network(item) if isinstance(item, str) else item, key))
    return out


def _named_network(name: str) -> dict[str, Any]:
    """As `student=<name>` has it: the content of conf/student/<name>.yaml, else any name."""
    path = CONF_DIR / "student" / f"{name}.yaml"
    if len(name) > 200 or not path.is_file():
        return {"name": name, "args": own_networks().get(name, {})}
    node = mapping_of(path)
    return {key: value for key, value in node.items() if key != "defaults"}


def check_coefficients(coefficients: Any) -> None:
    """Each key of `coefficients` must name a field of a registered loss term."""
    if not isinstance(coefficients, Mapping):
        raise ConfigError(f"coefficients: expected a mapping of sets of terms, got {coefficients!r}")
    errors = []
    for terms, values in coefficients.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"coefficients.{terms}: expected a mapping such as {{wttm.gamma: 0.3}}, got {values!r}")
        for name in str(terms).split("+"):
            lookup("loss", name, f"coefficients.{terms}")
        for dotted in values:
            name, _, field = str(dotted).partition(".")
            fields = lookup("loss", name, f"coefficients.{terms}.{dotted}").Config.model_fields
            if field not in fields:
                errors.append(f"coefficients.{terms}.{dotted}: {name} has no {field!r}{allowed(field, fields)}")
    if errors:
        raise ConfigError(*errors)


def check_settings(settings: Any) -> None:
    """Each key of `settings` must be one that the YAML of a method, teacher or loss term of that name reads there."""
    if not isinstance(settings, Mapping) or not all(isinstance(values, Mapping) for values in settings.values()):
        raise ConfigError(f"settings: expected a mapping such as {{dho: {{ce_share: 0.5}}}}, got {settings!r}")
    for name, values in settings.items():
        files = [path for kind in ("method", "teacher", "loss/term") for path in (CONF_DIR / kind).glob("*.yaml")]
        paths = [path for path in files if path.stem == name]
        if not paths and name not in registered("method"):
            known = {path.stem for path in files if f"${{setting:{path.stem}." in text_of(path, "")}
            raise ConfigError(f"settings.{name}: no method, teacher or loss term reads it{allowed(name, known)}")
        text = "".join(text_of(path, "") for path in paths)
        read = list(dict.fromkeys(re.findall(rf"\$\{{setting:{name}\.(\w+),", text)))
        for key in values:
            if key not in read:
                where = paths[0].relative_to(CONF_DIR.parent) if paths else f"conf/method/{name}.yaml"
                raise ConfigError(f"settings.{name}.{key}: {where} does not read it{allowed(key, read)}")


def dump(config: RunConfig) -> dict[str, Any]:
    """Plain nodes of a config, readable by `from_record`: without what the environment said."""
    node = config.model_dump(mode="json")
    node["loss"] = node.pop("losses")
    out: dict[str, Any] = hidden(node, config.written)
    return out


def read_conf(kind: str, name: str, cls: type[S]) -> S:
    """conf/<kind>/<name>.yaml, which stands beside the composed groups (tables, papers); also of a `--config-dir`.

    Raises:
        ConfigError: there is no such file, or one line for each mistake in it.
    """
    names = {path.stem for folder in conf_folders() for path in (folder / kind).glob("*.yaml")}
    if name not in names:  # nor a path to somewhere else
        own = "" if len(conf_folders()) > 1 else f"; of your own: --config-dir <the folder of {kind}/{name[:60]}.yaml>"
        raise ConfigError(f"{kind}={name[:60]}: no such {kind}{allowed(name[:60], names)}{own}")
    return build(cls, mapping_of(conf_file(f"{kind}/{name}.yaml")), f"{kind} {name}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
