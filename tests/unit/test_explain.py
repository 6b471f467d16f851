"""scripts/explain.py: every coefficient with its last word, and mistakes in one line."""

import runpy
import sys

import pytest

from kdrun.cli.explain import idea_of, main
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup, registered
from tests.conftest import ROOT

lookup("loss", "ce", "")
lookup("method", "supervised", "")
# what must be given beside the name
ASKS = {
    "peer_distill": ["students=[resnet8,resnet14]"], "peer_fixmatch": ["students=[resnet8,resnet14]"],
    "tip_adapter": ["dataset.num_labels=20"],
}  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    """{term.field: [value, origin]}"""
    out, label = {}, ""
    for line in text.splitlines():
        if line.startswith(("loss.", "method:")):
            label = line.split(":")[0].removeprefix("loss.")
        elif line.startswith("    "):
            name, _, rest = line.strip().partition("=")
            out[f"{label}.{name.strip()}"] = [part.strip() for part in rest.split("   ", 1)]
    return out


def test_each_coefficient_names_who_had_the_last_word():
    table = "++coefficients={wttm: {wttm.weight: 7}}"
    found = rows(main(["experiment=demo", "loss=wttm", "loss.ce.label_smoothing=0.1"]))
    assert found["ce.weight"] == ["1.0", "conf/loss/term/ce.yaml"]
    assert found["ce.label_smoothing"] == ["0.1", "the command line"]
    assert found["wttm.gamma"] == ["0.25", "coefficients.wttm in conf/experiment/demo.yaml"]
    assert rows(main(["loss=wttm"]))["wttm.gamma"] == ["0.1", "default of conf/loss/term/wttm.yaml"]
    assert rows(main(["loss=wttm", table]))["wttm.weight"] == ["7.0", "coefficients.wttm on the command line"]
    assert rows(main(["loss=wttm", table, "loss.wttm.weight=2"]))["wttm.weight"] == ["2.0", "the command line"]
    smoothed = rows(main(["experiment=ttm/imagenet_deit3_small_deit_tiny", "loss=ce"]))["ce.label_smoothing"]
    assert smoothed == ["0.1", "settings.ce in conf/experiment/ttm/imagenet_deit3_small_deit_tiny.yaml"]
    assert rows(main(["loss=ce"]))["ce.label_smoothing"] == ["0.0", "default of conf/loss/term/ce.yaml"]
    assert rows(main(["loss=kd"]))["ce.weight"] == ["0.1", "default of conf/loss/kd.yaml"]
    whole = rows(main(["++loss.other={name: ttm, weight: 3}"]))
    assert whole["other.weight"] == ["3.0", "the command line"]
    assert whole["other.gamma"] == ["0.1", "default of the schema"]


def test_a_recipe_of_several_devices_has_its_launch_line():
    words = ["experiment=dho/imagenet_l14_h14", "dataset.num_labels=10%"]
    start = "made with 8 processes: torchrun --nproc_per_node=8 -m kdrun.train experiment=dho/imagenet_l14_h14 "
    assert main(words).splitlines()[-1] == f"{start}dataset.num_labels=10%"
    assert "torchrun" not in main([*words, "execution.devices=null"])
    assert "torchrun" not in main([*words, "method=zero_shot"])  # it trains nothing


def test_files_of_a_users_own_folder_are_named(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# Mine.\ndefaults: [term/ce@ce, _self_]\nce: {weight: 0.5}\n")
    found = rows(main(["--config-dir", str(tmp_path), "loss=mine"]))
    assert found["ce.weight"] == ["0.5", f"{tmp_path}/loss/mine.yaml"]


def test_equation_source_and_ratio_are_told():
    text = main(["loss=kd"])
    assert "equation: temperature^2 KL(softmax(z_t / temperature) || softmax(z_s / temperature))" in text
    assert "source: Hinton et al. 2015, arXiv 1503.02531" in text
    assert "temperature^2 = 16 is inside the term" in text
    assert "as ttm does with gamma 0.25 and weight lambda T / (1 - lambda) = 36" in text
    assert text.endswith("CE : distillation = ce : kd = 1 : 9 by weight (shares 0.1 and 0.9)")
    text = main(["loss=ttm", "loss.ttm.weight=36", "loss.ttm.gamma=0.25"])
    assert "as kd does with temperature 4 and weight lambda = 0.9 beside 0.1 ce: 36 = lambda T / (1 - lambda)" in text
    text = main(["loss=wttm", "loss.wttm.weight=3", "+loss/term@loss.kd=kd", "loss.kd.weight=0"])
    assert text.endswith("ce : wttm = 1 : 3 by weight (shares 0.25 and 0.75)\nweight 0, not built: kd")
    assert main(["loss=wttm_noce"]).endswith("CE : distillation: no term against the labels alone")
    assert main(["loss=kd_linearity", "views=mixup"]).endswith("CE : distillation: no term against the labels alone")
    assert main(["loss=sce"]).endswith("CE : distillation: no distillation")


@pytest.mark.parametrize("name", sorted(registered("loss")))
def test_every_term_is_explained(name):
    cls = lookup("loss", name, "")
    needs = cls.needs(cls.Config(name=name))
    asked = ["views=mixup"] if needs.mixed else ["method.views=[weak,strong]"] if needs.views else []
    text = main(["loss=ce", f"+loss/term@loss.extra={name}", *asked])
    assert f"equation: {cls.equation}" in text
    assert {f"extra.{field}" for field in cls.Config.model_fields if field != "name"} <= rows(text).keys()


@pytest.mark.parametrize("name", sorted(registered("method")))
def test_every_method_is_explained_by_what_its_own_class_says(name):
    cls = lookup("method", name, "")
    text = main([f"method={name}", *ASKS.get(name, [])])
    assert text.startswith(f"method: {name}\n  idea: {idea_of(cls)}\n  equation: {vars(cls)['equation']}\n")
    assert f"\n  source: {vars(cls)['source']}\n" in text
    told = {key.split(".")[1] for key in rows(text) if key.startswith("method.")}
    assert told == cls.Config.model_fields.keys() - {"name", "source" if name == "linear_eval" else "name"}


def test_each_key_of_the_method_names_who_had_the_last_word():
    found = rows(main(["method=kd_fixmatch", "method.threshold=0.9", "method.clustering.pca=8"]))
    assert found["method.threshold"] == ["0.9", "the command line"]
    assert found["method.select_threshold"] == ["0.8", "conf/method/kd_fixmatch.yaml"]
    assert found["method.clustering.pca"] == ["8", "the command line"]
    assert found["method.live"] == ["null", "conf/method/kd_fixmatch.yaml"]
    found = rows(main(["method=uncertainty_distill", "method/uncertainty=max_prob"]))
    assert found["method.uncertainty.name"] == ["max_prob", "conf/method/uncertainty/max_prob.yaml"]
    found = rows(main(["method=dho", "++settings={dho: {ce_share: 0.3}}"]))
    assert found["method.ce_share"] == ["0.3", "settings.dho on the command line"]


def test_a_class_made_from_another_one_has_its_own_equation_or_none(tmp_path):
    (tmp_path / "mine.py").write_text(
        '"""Mine: surer labels. And more."""\n\nfrom kdrun import register\nfrom kdrun.methods.fixmatch import FixMatch\n\n\n'
        '@register("method", "mine")\nclass Mine(FixMatch):\n    pass\n'
    )
    text = main([f"plugins=[{tmp_path}/mine.py]", "method=fixmatch", "method.name=mine"])
    assert text.startswith(
        "method: mine\n  idea: Surer labels.\n  equation: its class names none\n  source: its class names none\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=wtm"], "loss=wtm: no such option; nearest: wttm"),
        (["loss=wttm", "loss.wttm.gama=0.3"], "loss.wttm.gama: unknown key; nearest: gamma"),
        (["loss=wttm", "loss.wttm.gamma=0"], "loss.wttm.gamma: must be greater than 0, got 0"),
        (["teacher=none"], "loss.kd: kd needs a teacher"),
        (["-m", "loss=ce,kd"], "-m: one run is explained at a time"),
        (["--no-such-flag"], "command line: unrecognized arguments: --no-such-flag"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError) as found:
        main(arguments)
    assert len(found.value.lines) == 1
    assert found.value.lines[0].startswith(message)


def test_the_script_prints_a_mistake_as_the_runner_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["explain.py", "loss=wttm", "loss.wttm.gamma=2"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "scripts" / "explain.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert (done.value.code, out) == (2, "")
    assert err == "error: loss.wttm.gamma: must be less than or equal to 1, got 2\n"
