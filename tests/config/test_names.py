"""What `student=`, `teacher=` and `loss=` name without a file: as one would write it, and a user's file first."""

import json

import pytest
from omegaconf import OmegaConf

from kdrun.cli.help import show_help
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.networks import own_networks
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import lookup
from kdrun.runs.record import find_records
from tests.conftest import FAST

TERMS = sorted(path.stem for path in (CONF_DIR / "loss" / "term").glob("*.yaml"))


@pytest.fixture(scope="module")
def composer():
    with Composer() as made:
        yield made


def weights(composer, *words: str) -> dict[str, float]:
    return {label: term.weight for label, term in composer.typed(words).losses.items()}


def node(composer, words: str, key: str):
    return OmegaConf.to_container(OmegaConf.select(composer.compose(words.split()), key), resolve=True)


@pytest.mark.parametrize("name", ["resnet8", "vgg8_cifar", "resnet18", "convnext_tiny.fb_in1k"])
def test_any_network_is_a_student_and_a_teacher(composer, name):
    by_hand = f"student=timm student.name={name} ++student.args={json.dumps(own_networks().get(name, {}))}"
    student = node(composer, f"student={name}", "student")
    assert student == node(composer, by_hand.replace('"', "").replace(": ", ":").replace(", ", ","), "student")
    trained = f"teacher=train student@teacher.model={name}"
    assert node(composer, f"teacher={name}", "teacher") == node(composer, trained, "teacher")
    config = composer.typed([f"student={name}", f"teacher={name}"])
    assert config.students[0] == config.teacher.model
    assert run_key(composer.typed([f"students=[{name}]"])) == run_key(composer.typed([f"student={name}"]))
    assert composer.typed([f"teacher={{source: train, model: {name}}}"]).teacher.model == config.teacher.model


def test_what_is_known_of_a_name_can_be_overridden(composer):
    assert composer.typed(["student=resnet8", "student.args.shortcut=A"]).students[0].args["shortcut"] == "A"
    teacher = composer.typed(["teacher=resnet20", "student@teacher.model=resnet32x4", "teacher.epochs=3"]).teacher
    assert (teacher.model.name, teacher.model.args["width"], teacher.epochs) == ("resnet32x4", 32, 3)


@pytest.mark.parametrize("name", sorted(set(TERMS) - {"ce", "kd", "wkd_logit"}))  # of these conf/loss has more
def test_a_term_stands_beside_cross_entropy_or_does_its_work(composer, name):
    term = lookup("loss", name, "")
    mixed = ["views=mixup"] if term.needs(term.Config(name=name)).mixed else []
    found = weights(composer, f"loss={name}", *mixed)
    alone = name in {"evidential", "gce", "mae", "nce", "sce"}
    assert set(found) == ({name} if alone else {"ce", name})
    assert found.get("ce", 1.0) == (0.1 if name == "ctkd" else 1.0)  # its authors', as for kd


def test_terms_are_added_and_taken_away(composer):
    assert set(weights(composer, "loss=wttm", "~loss.ce")) == {"wttm"}
    assert set(weights(composer, "loss=wttm", "+loss/term@loss.dkd=dkd")) == {"ce", "wttm", "dkd"}
    assert weights(composer, "loss=sce", "loss.ce.weight=0.5") == {"ce": 0.5, "sce": 1.0}
    assert weights(composer, "loss=wttm", "loss.ce.weight=0.5")["ce"] == 0.5
    assert weights(composer, "loss=wttm", "loss.wttm.weight=0") == {"ce": 1.0}


def test_experiments_choose_names_and_the_command_line_wins(composer):
    pick = "experiment=ttm/resnet56_resnet20"
    config = composer.typed([pick, "loss=dkd"])
    assert (config.teacher.model.name, config.students[0].name) == ("resnet56", "resnet20")
    assert config.losses["dkd"].beta == 2
    config = composer.typed([pick, "loss=sce", "method=supervised", "student=resnet18"])
    assert (config.students[0].name, set(config.losses)) == ("resnet18", {"sce"})
    assert composer.typed([pick, "teacher=vgg13_cifar"]).teacher.model.name == "vgg13_cifar"
    pair = ["experiment=ttm/base", "teacher=resnet56", "student=resnet20"]
    assert run_key(composer.typed(pair)) == run_key(composer.typed([pick]))


def test_a_sweep_goes_over_names(composer):
    jobs = composer.expand(["loss=ce,kd,wttm", "student=resnet8,resnet18"], multirun=True)
    assert len({run_key(composer.typed(job)) for job in jobs}) == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("student=resnt8", "student.name: timm knows no network 'resnt8'; nearest: resnet8"),
        ("teacher=resnt56", "teacher.model.name: timm knows no network 'resnt56'; nearest: resnet56"),
        ("teacher=ensembl", "teacher.model.name: timm knows no network 'ensembl'; nearest: ensemble"),
        ("student=digits_clp", "student.name: timm knows no network 'digits_clp'; nearest: digits_clip"),
        ("students=[resnet8x]", "student.name: timm knows no network 'resnet8x'; nearest: resnet8x4"),
        ("loss=wtm", "loss=wtm: no such option; nearest: wttm (allowed: at, "),
        ("loss=kd_nce", "loss=kd_nce: no such option; nearest: kd_noce (allowed: "),
        ("+loss/term@loss.x=dkdd", "loss/term@loss.x=dkdd: no such option; nearest: dkd (allowed: "),
        ("loss=null", "loss=null: not an option of the group (allowed: at, "),
    ],
)
def test_an_unknown_name_is_one_line(composer, arguments, line):
    with pytest.raises(ConfigError) as found:
        composer.typed(arguments.split())
    (only,) = found.value.lines
    assert only.startswith(line)


def write_users_files(folder):
    for name, text in {
        "student/resnet8": "defaults: [timm, _self_]\nname: resnet8\nargs: {width: 4}\n",
        "loss/wttm": "defaults: [term/ce@ce, term/wttm@wttm, _self_]\nwttm: {weight: 3}\n",
        "loss/term/mine": "name: gce\nweight: 0.5\nq: 0.5\n",
    }.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n{text}")


def test_a_users_file_wins_over_a_name_without_one(tmp_path):
    write_users_files(tmp_path)
    with Composer(str(tmp_path)) as composer:
        config = composer.typed(["loss=wttm", "teacher=resnet8"])
        assert config.losses["wttm"].weight == 3
        assert config.students[0].args == config.teacher.model.args == {"width": 4}
        assert weights(composer, "loss=mine") == {"mine": 0.5}
        with pytest.raises(ConfigError, match="loss=minee: no such option; nearest: mine"):
            composer.typed(["loss=minee"])
    assert "mine" in show_help([f"--config-dir={tmp_path}"])


def test_it_wins_in_the_run_too(tmp_path, train, outputs):
    write_users_files(tmp_path)
    short = [word for word in FAST if not word.startswith("student")]
    assert train("--config-dir", str(tmp_path), *short, "method=supervised", "loss=mine", "student=resnet8") == 0
    ((_, record),) = find_records(outputs)
    assert record["config"]["students"][0]["args"] == {"width": 4}
    assert set(record["config"]["loss"]) == {"mine"}


def test_help_and_completion_list_the_names(composer):
    listed = {
        line.split(":")[0].strip(): {word.strip() for word in line.partition(":")[2].split(",")}
        for line in show_help([]).splitlines()
        if line.startswith("  ") and ":" in line
    }
    loader = composer.hydra.config_loader
    for group in ("student", "teacher", "loss"):
        assert listed[group] == set(loader.get_group_options(group))
    assert listed["student"] >= set(own_networks())
    assert listed["loss"] >= {*TERMS, "dho"}
