"""The run key: what counts, what does not, and that known runs keep their names."""

import json
from pathlib import Path

import pytest

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.nodes import dump, from_nodes

FROZEN = Path(__file__).parent / "frozen_keys.json"


def key(composer, *overrides: str) -> str:
    return run_key(composer.typed(list(overrides)))


@pytest.mark.slow
def test_frozen_keys(composer):
    """A changed key orphans every user's finished runs. After a deliberate change raise KEY_VERSION and remake the file:
    python -m tests.config.test_keys"""
    frozen = json.loads(FROZEN.read_text())
    assert len(frozen) >= 20
    assert {line: key(composer, *line.split()) for line in frozen} == frozen


def moving(composer, overrides: list[str]) -> list[str]:
    """Those of the overrides with which the key is another one."""
    plain = key(composer)
    return [override for override in overrides if key(composer, override) != plain]


def test_what_cannot_change_the_result_is_not_in_the_key(composer):
    overrides = [
        "execution.device=cpu", "execution.outputs=elsewhere", "execution.threads=1", "execution.log_every_steps=7",
        "tracker=none", "tracker.project=other", "dataset.split_seed=0",
        "++coefficients={wttm: {wttm.gamma: 0.3}}", "student.lr_scale=1.0", "schedule.eval_every_steps=7", "views.weak.flip=false",
        "+schedule.lr_for.resnet14=0.1", "views.mix.alpha=0.2", "evaluate.corruptions=/somewhere", "teacher.mix.per=batch", "views.mix.share=0",
        "teacher.temperature=1", "views.strong.erase=0.5", "views.mix.cutmix_share=0.1",
    ]  # fmt: skip
    assert moving(composer, overrides) == []


def test_what_can_change_the_result_is_in_the_key(composer):
    overrides = [
        "seed=1", "dataset.num_labels=50", "dataset.val_seed=1", "loss.kd.temperature=2", "loss=ttm", "schedule.lr=0.1",
        "schedule/decay=linear", "student=resnet14", "student.args.width=8", "teacher=resnet8", "teacher.seed=1",
        "views.weak.pad=2", "schedule.ema_decay=0.9", "views.mix.kind=mixup", "teacher.mix.kind=mixup", "teacher.temperature=2", "views.labeled=strong",
    ]  # fmt: skip
    assert moving(composer, overrides) == overrides


def test_the_labeled_draw_follows_the_seed_unless_it_is_fixed(composer):
    follow, fixed = ["dataset.num_labels=50"], ["dataset.num_labels=50", "dataset.split_seed=0"]
    assert key(composer, *follow) == key(composer, *fixed)  # seed 0 draws with seed 0 either way
    assert key(composer, *follow, "seed=1") != key(composer, *fixed, "seed=1")
    assert composer.typed([*follow, "seed=3"]).split_seed == 3
    assert composer.typed([*fixed, "seed=3"]).split_seed == 0


def test_evaluations_count_where_the_learning_rate_follows_them(composer):
    plateau = ["schedule/decay=plateau"]
    assert key(composer, *plateau, "schedule.eval_every_steps=7") != key(composer, *plateau)


def test_the_order_of_terms_does_not_count(composer):
    one = ["loss=ce", "+loss/term@loss.kd=kd", "+loss/term@loss.ttm=ttm"]
    other = ["loss=ce", "+loss/term@loss.ttm=ttm", "+loss/term@loss.kd=kd"]
    assert key(composer, *one) == key(composer, *other)
    assert list(composer.typed(other).losses) == ["ce", "kd", "ttm"]


def test_students_by_name_are_the_yaml_of_that_name(composer):
    assert key(composer, "students=[resnet14]") == key(composer, "student=resnet14")


def test_standardize_counts_where_it_does_something(composer):
    assert key(composer, "loss.kd.standardize=none") == key(composer)
    assert key(composer, "loss.kd.standardize=zscore") != key(composer)


def test_wttm_without_ce_is_wttm_with_ce_taken_out(composer):
    assert key(composer, "loss=wttm_noce") == key(composer, "loss=wttm", "~loss.ce", "loss.wttm.weight=1")


def test_ramps_and_the_teacher_s_loss_count(composer):
    ramp = "+ramps.a={key: loss.kd.weight, end: 0.5}"
    assert key(composer, ramp) != key(composer)
    assert key(composer, "teacher.loss=evidential") != key(composer)
    cadence = "schedule.eval_every_steps=7"
    assert key(composer, ramp, cadence) == key(composer, ramp)
    adaptive = "+ramps.a={key: loss.kd.weight, kind: adaptive, end: 0.5}"
    assert key(composer, adaptive, cadence) != key(composer, adaptive)


def test_a_teacher_knows_no_ramp_of_its_student(composer):
    config = composer.typed(["+ramps.a={key: loss.kd.weight, end: 0.5}"])
    plain = composer.typed([])
    assert run_key(config.method_class.requires(config)["teacher"]) == run_key(
        plain.method_class.requires(plain)["teacher"]
    )


def test_the_outer_run_has_the_ramps_of_the_weights_that_it_has(composer):
    ramps = ["+ramps.a={key: method.unlabeled_weight, start: 0}", "+ramps.b={key: loss.sce.weight, end: 0.5}"]
    config = composer.typed(["method=kd_fixmatch", "loss=sce", *ramps])
    outer = config.method_class.requires(config)["outer"]
    assert list(outer.ramps) == ["a"]
    assert run_key(outer) == key(composer, "method=fixmatch", ramps[0])


def test_an_unused_teacher_and_terms_without_weight_are_dropped(composer):
    assert key(composer, "loss=ce") == key(composer, "loss=ce", "teacher=resnet56")
    assert key(composer, "loss=kd", "loss.kd.weight=0", "loss.ce.weight=1") == key(composer, "loss=ce")


def test_the_teacher_is_shared_by_students_seeds_and_losses(composer):
    def teacher(*overrides):
        config = composer.typed(list(overrides))
        return run_key(config.method_class.requires(config)["teacher"])

    shared = teacher()
    for other in (
        ["seed=5"],
        ["loss=wttm"],
        ["dataset.num_labels=50", "seed=2"],
        ["student=resnet20"],
        ["loss.kd.temperature=2"],
    ):
        assert teacher(*other) == shared, other
    assert teacher("teacher.temperature=0.25") == shared  # after its training
    assert teacher("teacher.seed=1") != shared
    assert teacher("teacher.num_labels=100") != shared
    assert shared == key(composer, "method=supervised", "student=resnet20")  # the same run, started by hand


def test_mixing_is_for_the_student_and_by_one_override_for_the_teacher(composer):
    def teacher(*overrides):
        config = composer.typed(list(overrides))
        return run_key(config.method_class.requires(config)["teacher"])

    mixed = ["method=mixup_distill", "student=resnet14"]
    assert teacher(*mixed) == teacher("student=resnet14") == key(composer, "method=supervised", "student=resnet20")
    by_hand = key(composer, "method=supervised", "student=resnet20", "views.mix.kind=mixup", "views.mix.alpha=0.2")
    assert teacher(*mixed, "teacher.mix.kind=mixup", "teacher.mix.alpha=0.2") == by_hand
    members = "teacher.members=[{source: train, model: {name: resnet8}, mix: {kind: cutmix}}, {source: train, model: {name: resnet14}}]"
    config = composer.typed([*mixed, "teacher=ensemble", members])
    assert [r.views.mix.kind for r in config.method_class.requires(config).values()] == ["cutmix", "none"]


def test_the_authors_form_of_mixup_distillation(composer):
    config = composer.typed(["method=mixup_distill"])
    assert (config.views.mix.kind, config.views.mix.alpha, config.views.mix.per, config.views.mix.share) == (
        "mixup",
        1.0,
        "sample",
        1.0,
    )
    assert {name: (term.weight, term.temperature) for name, term in config.losses.items()} == {"kd": (1.0, 2.0)}
    assert composer.typed(["method=mixup_distill", "loss.kd.temperature=0.5"]).losses["kd"].temperature == 0.5
    both = composer.typed(["method=mixup_distill", "loss=kd_mixup"]).losses
    assert (both["ce"].weight, both["kd"].weight) == (0.2, 0.8)


def test_a_data_file_counts_by_content_not_by_place(composer, tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (key(composer, "dataset=npz", f"dataset.path={tmp_path / name}") for name in "abc")
    assert a == b != c


def test_a_recorded_config_gives_the_same_key_again(composer):
    config = composer.typed(["loss=wttm", "dataset.num_labels=50", "schedule=cifar240", "seed=4"])
    assert from_nodes(json.loads(json.dumps(dump(config)))) == config
    assert run_key(from_nodes(dump(config))) == run_key(config)


def remake() -> None:
    lines = [
        "seed=0", "seed=1", "loss=ce", "loss=ttm", "loss=wttm", "loss=wttm loss.wttm.gamma=0.3", "method=supervised",
        "method=supervised student=resnet20", "experiment=demo", "experiment=demo loss=wttm seed=2",
        "dataset.num_labels=50", "dataset.num_labels=50 dataset.split_seed=7", "dataset.val_fraction=0", "schedule=cifar240",
        "schedule=cifar240 schedule.ema_decay=0.999 schedule.weight_decay_on=kernels", "schedule/decay=fixmatch",
        "schedule/decay=linear schedule.warmup_steps=10", "teacher=resnet56 student=resnet110",
        "student=timm student.name=resnet10t student.size=32", "views.weak.pad_mode=reflect",
        "+loss/term@loss.extra=ttm", "schedule.optimizer=adamw schedule.lr=1e-3", "teacher.num_labels=100",
        "schedule.compile=true", "schedule.fused=true", "method=fixmatch", "method=fixmatch loss=sce views=usb",
        "method=kd_fixmatch", "method=kd_fixmatch method.selector=confidence", "experiment=kd_fixmatch/digits seed=3",
        "loss=dkd", "loss=dist", "loss=nkd", "loss=kd_zscore", "loss=wttm_noce", "loss=ttm loss.ttm.standardize=std",
        "loss=dkd loss.dkd.warmup=0.01 loss.dkd.beta=2", "method=uncertainty_distill",
        "method=uncertainty_distill loss=wttm method/uncertainty=max_prob", "method=peer_distill students=[resnet8,resnet14]",
        "method=peer_distill students=[resnet8,resnet14,resnet20] loss=ce method.peer_target=sum",
        "method=peer_fixmatch students=[resnet8,resnet14]", "experiment=dual_student/digits_unlabeled method.labeler=both",
        "+ramps.a={key:loss.kd.weight,end:0.5} loss=kd", "teacher.loss=evidential",
        "method=mixup_distill",
        "method=mixup_distill loss=kd_mixup views.mix.kind=cutmix views.mix.alpha=0.2 views.mix.per=batch",
        "method=supervised views.mix.kind=mixup views.mix.share=0.5", "method=mixup_distill teacher.mix.kind=mixup",
        "method=dho", "method=dho method/variant=code", "method=sho method.pcgrad=true", "loss=kd loss.kd.scale=none",
        "experiment=ttm/resnet56_resnet20", "experiment=ttm/resnet56_resnet20 loss=fitnet",
        "experiment=ttm/resnet56_resnet20 loss=crd", "experiment=ttm/imagenet_resnet34_resnet18 loss=wttm",
        "experiment=ttm/imagenet_deit3_small_deit_tiny loss=wttm", "experiment=dho/caltech101",
        "experiment=dho/eurosat dataset.num_labels=1/class", "experiment=dho/flowers102 teacher=tip_adapter",
        "experiment=dho/imagenet_r18 dataset.num_labels=1/class", "experiment=dho/imagenet_b16_l14",
        "experiment=dho/imagenet_l14_h14", "experiment=dho/imagenet_b16_frozen", "experiment=dual_student/cifar100",
        "experiment=fixmatch/svhn_40", "experiment=fixmatch/cifar10_40", "experiment=fixmatch/stl10",
        "experiment=fixmatch/imagenet10", "experiment=mixup_kd/cifar100_scratch",
    ]  # fmt: skip
    with Composer() as made:
        FROZEN.write_text(json.dumps({line: key(made, *line.split()) for line in lines}, indent=1) + "\n")


if __name__ == "__main__":
    remake()


def test_the_file_of_a_teachers_loss_counts_for_its_students(tmp_path):
    path = tmp_path / "mine.py"
    run = [f"plugins=[{path}]", "teacher=resnet8", "teacher.loss=mine"]
    keys = []
    for line in ("", "\n# edited\n"):
        path.write_text(
            "from kdrun import register\nfrom kdrun.core.registry import lookup\n\n"
            f'@register("loss", "mine")\nclass Mine(lookup("loss", "ce", "loss")):\n    pass\n{line}'
        )
        with Composer() as composer:
            keys.append(key(composer, *run))
    assert keys[0] != keys[1]
