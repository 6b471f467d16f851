"""Every YAML composes, is complete and types."""

import pytest
import yaml
from omegaconf import OmegaConf

from kdrun.config.dataset import PackConfig
from kdrun.config.model import ModelConfig
from kdrun.config.run import EvaluateConfig, ExecutionConfig, RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.source import GROUPS as WITHOUT_FILE
from kdrun.config.source import names_without_file
from kdrun.config.views import MixConfig, ViewsConfig
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import lookup, registered
from kdrun.core.schema import build
from kdrun.results.papers import read_paper
from kdrun.results.spec import TableConfig


def options(group: str) -> list[str]:
    files = {p.stem for p in (CONF_DIR / group).glob("*.yaml")}
    return sorted(files.union(names_without_file(group) if group in WITHOUT_FILE else ()))


WEIGHTED = "method=uncertainty_distill"
MEMBERS = "teacher.members=[{source: train, model: {name: resnet8}}, {source: train, model: {name: resnet14}}]"
# Picks that need one more key, or another pick, to stand alone.
NEEDS = {
    "dataset=npz": None,
    "dataset=base": None,
    "dataset=base_files": None,
    "student=timm": ["student.name=resnet10t"],
    "teacher=train": ["teacher.model.name=resnet10t"],
    "teacher=distilled": ["teacher.model.name=resnet8", "teacher.teacher.model.name=resnet14"],
    "teacher=none": ["loss=ce"],
    "teacher=timm": ["teacher.model.name=resnet10t"],
    "teacher=file": ["teacher.model.name=resnet10t", f"teacher.path={__file__}"],
    "teacher=ensemble": [MEMBERS],
    "teacher=open_clip": ["teacher.model.name=RN50", "teacher.pretrained=openai"],
    "teacher=tip_adapter": ["dataset.num_labels=50"],
    "teacher=digits_tip_adapter": ["dataset.num_labels=50"],
    "method=tip_adapter": ["dataset.num_labels=50"],
    "dataset=imagefolder": None,
    "dataset=listed": None,
    **{f"method/variant={name}": ["method=dho"] for name in ("paper", "code", "code_low_shot")},
    "dataset=hf": None,
    "method=peer_distill": ["students=[resnet8,resnet14]"],
    "method=peer_fixmatch": ["students=[resnet8,resnet14]"],
    **{f"method/uncertainty={name}": [WEIGHTED] for name in ("none", "entropy", "max_prob", "mc_dropout")},
    "method/uncertainty=deep_ensemble": [WEIGHTED, "teacher=ensemble", MEMBERS],
    "method/uncertainty=evidential": [WEIGHTED, "teacher.loss=evidential"],
    "loss=linearity": ["views=mixup"],
    "loss=mlkd": ["method.views=[weak,strong]"],
    "loss=none": ["method=simkd", "loss=none"],
    **{f"loss={name}": ["teacher=ensemble", MEMBERS] for name in ("avgkd", "ebkd", "camkd")},
    "loss=kd_linearity": ["views=mixup"],
    "schedule=base": ["schedule.steps=1"],
    "schedule/decay=step": ["schedule.decay.milestones_steps=[1]"],
    "schedule/decay=segments": ["schedule.decay.segments=[{until_steps: 1, start: 1, end: 0}]"],
}
GROUPS = [
    "method",
    "method/uncertainty",
    "method/variant",
    "dataset",
    "teacher",
    "student",
    "loss",
    "schedule",
    "schedule/decay",
    "views",
    "tracker",
    "experiment",
]


def refused(composer, picks: list[list[str]]) -> tuple[dict[str, RunConfig], list[str]]:
    """What these lists of overrides compose to, and of those that do not compose or type, why."""
    typed, lines = {}, []
    for overrides in picks:
        try:
            typed[" ".join(overrides)] = composer.typed(overrides)
        except ConfigError as error:
            lines.append(f"{' '.join(overrides)}: {error}")
    return typed, lines


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_pick_of_a_group_composes_and_types(composer, group):
    names = [name for name in options(group) if NEEDS.get(f"{group}={name}", []) is not None]
    typed, lines = refused(composer, [[f"{group}={name}", *NEEDS.get(f"{group}={name}", [])] for name in names])
    assert names
    assert lines == []
    if group in ("method", "dataset"):
        assert [getattr(config, group).name for config in typed.values()] == names


def test_first_line_says_what_the_file_is():
    paths = sorted(CONF_DIR.rglob("*.yaml"))
    assert paths
    first = {
        str(path.relative_to(CONF_DIR)): next(
            (line for line in path.read_text().splitlines() if line != "# @package _global_"), ""
        )
        for path in paths
    }
    assert {name: line for name, line in first.items() if not line.startswith("# ") or len(line) <= 10} == {}


TABLES = {name.partition("_")[0]: [] for name in options("table")}  # by the first word of their names: a paper's
for table in options("table"):
    TABLES[table.partition("_")[0]].append(table)


@pytest.mark.slow
@pytest.mark.parametrize("names", TABLES.values(), ids=TABLES.keys())
def test_tables_type_and_their_cells_compose(composer, names):
    found, seen = [], set()
    for name in names:
        spec = build(TableConfig, yaml.safe_load((CONF_DIR / "table" / f"{name}.yaml").read_text()), name)
        rows, columns = list(spec.rows.values()), list(spec.columns.values())
        columns = [words for words in columns if tuple(words) not in seen] or columns[:1]  # each of a paper's once
        seen |= set(map(tuple, columns))
        count = max(len(rows), len(columns))  # each row and each column once
        cells = [[*columns[i % len(columns)], *rows[i % len(rows)]] for i in range(count)]
        typed, lines = refused(composer, cells)
        # zero_shot trains nothing, simkd has a loss of its own
        lines += [
            f"{cell}: no loss" for cell, run in typed.items() if not run.losses and run.needs.trains and run.needs.terms
        ]
        lines += (
            [f"paper={spec.paper}: no cells"] if spec.paper is not None and not read_paper(spec.paper).cells else []
        )
        found += [f"table={name}: {line}" for line in lines]
    assert found == []


def keys(node) -> set[str]:
    return set(OmegaConf.to_container(node, resolve=False))


def test_yaml_lists_every_key_of_its_schema_so_that_each_can_be_overridden_and_completed(composer):
    cfg = composer.compose([])
    assert keys(cfg.schedule) == set(ScheduleConfig.model_fields)
    kinds = [cls for cls in registered("teacher").values() if cls.__module__.startswith("kdrun.teachers.")]
    assert keys(cfg.teacher) == {name for cls in kinds for name in cls.Config.model_fields}
    assert keys(cfg.student) == set(ModelConfig.model_fields)
    assert keys(cfg.tracker) == set(lookup("tracker", "wandb", "").Config.model_fields)
    assert keys(cfg.evaluate) == set(EvaluateConfig.model_fields)
    assert keys(cfg.execution) == set(ExecutionConfig.model_fields)
    assert keys(cfg.views) == set(ViewsConfig.model_fields)
    assert keys(cfg.views.mix) == keys(cfg.teacher.mix) == set(MixConfig.model_fields)
    assert keys(cfg.views.weak) == set(ViewsConfig.model_fields["weak"].annotation.model_fields)


@pytest.mark.parametrize(
    ("kind", "group", "node"),
    [
        ("method", "method", "method"),
        ("uncertainty", "method/uncertainty", "method.uncertainty"),
        ("dataset", "dataset", "dataset"),
        ("decay", "schedule/decay", "schedule.decay"),
    ],
)
def test_yaml_of_plugged_parts_is_complete(composer, kind, group, node):
    for name in options(group):
        if name.startswith("base"):
            continue
        cfg = composer.compose([f"{group}={name}", *([WEIGHTED] if kind == "uncertainty" else [])])
        found = OmegaConf.select(cfg, node, throw_on_missing=False)
        assert keys(found) == set(lookup(kind, name, group).Config.model_fields), f"conf/{group}/{name}.yaml"
        if "pack" in found:
            assert keys(found.pack) == set(PackConfig.model_fields)


def test_yaml_of_loss_terms_is_complete(composer):
    names = options("loss/term")
    cfg = composer.compose([f"+loss/term@loss.of_{name}={name}" for name in names])
    fields = {name: set(lookup("loss", name, name).Config.model_fields) for name in names}
    assert {name: keys(cfg.loss[f"of_{name}"]) for name in names} == fields


def test_no_import_paths_in_yaml():
    assert not [p for p in CONF_DIR.rglob("*.yaml") if "_target_" in p.read_text()]


def test_coefficients_reach_the_terms_of_their_set_only(composer):
    table = "++coefficients={wttm: {wttm.gamma: 0.3, wttm.weight: 7}, kd+wttm: {wttm.gamma: 0.5}}"
    assert composer.typed([table, "loss=wttm"]).losses["wttm"].gamma == 0.3
    assert composer.typed([table, "loss=wttm"]).losses["wttm"].weight == 7
    both = composer.typed([table, "loss=wttm", "+loss/term@loss.kd=kd"]).losses["wttm"]
    assert (both.gamma, both.weight) == (0.5, 4.0)
    assert composer.typed([table, "loss=wttm", "loss.wttm.gamma=0.2"]).losses["wttm"].gamma == 0.2
    assert composer.typed([table, "loss=wttm", "~loss.ce"]).losses.keys() == {"wttm"}
