"""What in a configuration does not go together: one line for each part, found before anything runs."""

from pathlib import Path
from typing import Any

from kdrun.config.model import ModelConfig
from kdrun.config.needs import recipe_of
from kdrun.config.networks import own_networks
from kdrun.config.run import RunConfig
from kdrun.config.teacher import LabelsConfig, NetworkConfig
from kdrun.config.views import ViewsConfig
from kdrun.core.errors import allowed
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import load


def contradictions(config: RunConfig) -> list[str]:
    """One line for each part that does not go with another."""
    return [
        *_of_views(config), *_of_terms(config), *config.method_class.contradictions(config), *_of_ramps(config),
        *_of_teacher_and_data(config), *_of_networks(config),
    ]  # fmt: skip


def _of_views(config: RunConfig) -> list[str]:
    errors, mix = [], config.views.mix
    if mix.mixes and not config.needs.takes_mixed:
        errors.append(
            f"views.mix.kind: method={config.method.name} does not take mixed images, got {mix.kind}; set it to none, "
            "or choose method=mixup_distill"
        )
    asked = {recipe_of(view) for views in config.needs.streams.values() for view in views}
    if config.views.strong.learns and "strong" in asked and "probe" not in asked:
        errors.append(
            f"views.strong.policy: ctaugment learns from a view `probe` of labeled images, which "
            f"method={config.method.name} does not ask for; choose randaugment, or a method of FixMatch's kind"
        )
    if config.views.labeled == "strong" and "weak" in config.needs.streams.get("labeled", ()):
        if config.views.strong.learns:
            errors.append(
                "views.labeled: strong, but views.strong.policy=ctaugment has its operations done by methods of "
                "FixMatch's kind, to unlabeled images; choose randaugment, or set views.labeled=weak"
            )
        if config.teacher.cache.mode != "off" and config.needs_teacher:
            errors.append(
                f"teacher.cache.mode: {config.teacher.cache.mode} keeps logits of weak views, and views.labeled=strong "
                "shows others; set it to off, or views.labeled=weak"
            )
    if config.views.weak.scale is None:
        errors += [
            f"views.{name}: goes with crops at random scales; give views.weak.scale, e.g. views=imagenet"
            for name in ("size", "eval_ratio")
            if getattr(config.views, name) != ViewsConfig.model_fields[name].default
        ]
    return errors


def _of_terms(config: RunConfig) -> list[str]:
    errors: list[str] = []
    method, mix = config.method_class.needs(config), config.views.mix
    for label, needs in config.term_needs.items():
        term = config.losses[label].name
        if mix.mixes and needs.index:
            errors.append(
                f"loss.{label}: {term} remembers single images, and views.mix.kind={mix.kind} mixes them; "
                "choose another term, or set it to none"
            )
        if needs.mixed and not mix.mixes:
            hint = "choose mixup or cutmix" if method.takes_mixed else "choose method=mixup_distill"
            errors.append(f"loss.{label}: {term} is about mixed images, and views.mix mixes none; {hint}")
        shown = method.streams.get("labeled", ())
        if not set(needs.views) <= set(shown):
            errors.append(
                f"loss.{label}: {term} is about the views {', '.join(needs.views)} of labeled images, and "
                f"method={config.method.name} shows it {', '.join(shown) or 'none'}; choose method=distill and set "
                f"method.views=[{','.join(needs.views)}]"
            )
        if needs.side not in method.sides:
            errors.append(
                f"loss.{label}: {term} works against the {needs.side}, "
                f"which method={config.method.name} does not offer; "
                + ("choose method=distill" if needs.teacher else "choose a loss against the teacher")
            )
        elif needs.teacher and not config.teacher.kind().present:
            errors.append(
                f"loss.{label}: {term} needs a teacher, but teacher.source=none; choose one, e.g. teacher=resnet20"
            )
    if method.teacher and not config.teacher.kind().present:
        name = config.method.name
        errors.append(f"method={name} needs a teacher, but teacher.source=none; choose one, e.g. teacher=resnet20")
    return errors


def _of_ramps(config: RunConfig) -> list[str]:
    errors, weights, taken = [], config.weights, set[str]()
    for name, ramp in config.ramps.items():
        if ramp.key not in weights:
            errors.append(f"ramps.{name}.key: no weight above 0 is called {ramp.key!r}{allowed(ramp.key, weights)}")
        elif ramp.key in taken:
            errors.append(f"ramps.{name}.key: {ramp.key} has a ramp already; leave one of the two")
        elif ramp.kind == "adaptive" and not config.schedule.evaluates_more_than_once:
            errors.append(f"ramps.{name}: adaptive needs evaluations; give schedule.eval_every_steps or _epochs")
        taken.add(ramp.key)
    return errors


def _of_teacher_and_data(config: RunConfig) -> list[str]:
    errors, mix = [], config.views.mix
    if config.schedule.decay.name == "plateau" and not config.schedule.evaluates_more_than_once:
        errors.append("schedule.decay: plateau needs evaluations; give schedule.eval_every_steps or _epochs")
    if config.teacher.cache.mode != "off" and mix.mixes and config.needs_teacher:
        errors.append(
            f"teacher.cache.mode: {config.teacher.cache.mode}, but mixed images (views.mix.kind={mix.kind}) are never "
            "the same twice; set one of them to off or none"
        )
    if config.teacher.cache.mode != "off" and getattr(config.dataset, "stream", False) and config.needs_teacher:
        errors.append(
            f"teacher.cache.mode: {config.teacher.cache.mode}, but dataset.stream=true crops each image anew from its "
            "file; pack the images (dataset.stream=false, dataset.pack.size), or set teacher.cache.mode=off"
        )
    if config.dataset.part == "upstream" and not config.dataset.upstream:
        errors.append("dataset.part: the upstream part is empty; give dataset.upstream, the share that is set apart")
    if config.dataset.split_file is not None and config.dataset.upstream:
        errors.append("dataset.upstream: the images are those of dataset.split_file; set it to 0")
    if config.needs_teacher:
        errors += [line for kind in config.teacher.kinds for line in kind.contradictions(config)]
    for key, part in config.teacher.parts().items():
        if config.dataset.split_file is not None and isinstance(part, LabelsConfig) and part.num_labels is not None:
            errors.append(f"{key}.num_labels: the labels are those of dataset.split_file; set it to null")
    return errors


def _of_networks(config: RunConfig) -> list[str]:
    errors = [
        f"schedule.lr_for.{name}: timm knows no network {name!r}{allowed(name, _timm().list_models(), most=0)}"
        for name in config.schedule.lr_for
        if name not in own_networks() and not _timm().is_model(name)
    ]
    low, high = config.needs.students
    if len(config.students) < low or (high is not None and len(config.students) > high):
        wanted = f"{low} or more" if high is None else low if low == high else f"{low} to {high}"
        hint = "; give e.g. students=[resnet8,resnet14]" if low > 1 else ""
        errors.append(f"students: method={config.method.name} trains {wanted}, got {len(config.students)}{hint}")
    for key, part in config.teacher.parts().items():
        if isinstance(part, NetworkConfig) and part.model.zero_head and not part.kind(key).trains_model:
            told = "a frozen teacher's classifier is that of its weights; set it to false"
            errors.append(f"{key}.model.zero_head: {told}")
    return [*errors, *(line for key, model in config.networks for line in _of_network(key, model))]


def _timm() -> Any:
    """timm, with all networks registered in it. It takes seconds to load: who names only kdrun's own is not asked."""
    load("model")
    import timm

    return timm


def _of_network(key: str, model: ModelConfig) -> list[str]:
    own = model.name in own_networks()
    if not own and not _timm().is_model(model.name):
        group = "teacher" if key.startswith("teacher") else "student"
        files = (path.stem for path in (CONF_DIR / group).glob("*.yaml"))  # teacher=ensembl comes here
        near = allowed(model.name, [*_timm().list_models(), *files], most=0)
        return [f"{key}.name: timm knows no network {model.name!r}{near}"]
    if model.name == "open_clip":
        return _of_clip(key, model)
    try:
        published = None if own else _timm().get_pretrained_cfg(model.name)
    except RuntimeError as error:  # an unknown tag behind the point
        return [f"{key}.name: {error}"]
    errors = []
    if model.pretrained and model.file is None and (published is None or not published.has_weights):
        errors.append(
            f"{key}.pretrained: timm has no published weights of {model.name}; set it to false or choose another"
        )
    if model.file is not None and not model.pretrained:
        errors.append(f"{key}.file: weights are read with pretrained=true only; set it, or leave out the file")
    if model.file is None:
        errors += [f"{key}.{name}: is about the weights in {key}.file, and none is given" for name in model.given()]
    if model.new_head and not model.pretrained:
        errors.append(f"{key}.new_head: goes with pretrained=true; without published weights every head is new")
    return errors


def _of_clip(key: str, model: ModelConfig) -> list[str]:
    if odd := [name for name in model.given() if name != "entry" or model.file is None]:
        return [f"{key}.{odd[0]}: not for open_clip, whose weights are taken as open_clip takes them; leave it out"]
    named = [name for name in ("model", "tag") if model.args.get(name) is not None]
    if model.file is not None and Path(model.file).expanduser().is_dir():
        return [
            f"{key}.args.{name}: the folder in {key}.file tells which network it holds; set it to null"
            for name in named
        ]
    if model.file is None and ("model" not in named or (model.pretrained and "tag" not in named)):
        return [
            f"{key}.args: open_clip needs the name of a model and the tag of its weights, e.g. "
            f"{{model: ViT-B-16, tag: openai}}, or {key}.file"
        ]
    return []
