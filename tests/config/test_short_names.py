"""What runs are called: after what differs between them, no two of a sweep alike."""

import time

import pytest

from kdrun.config.names import kind_of, seed_of, short_names
from kdrun.methods.requires import teacher_runs

DEMO = "experiment=demo"


def names(composer, *words: str) -> list[str]:
    return short_names([composer.typed(job) for job in composer.expand([DEMO, *words], multirun=True)])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], ["kd-resnet8-digits-100 s0"]),
        (["loss=ce,kd", "seed=3"], ["ce-resnet8-digits-100 s3", "kd-resnet8-digits-100 s3"]),
        (["dataset.num_labels=50,null"], ["kd-resnet8-digits-50 s0", "kd-resnet8-digits s0"]),
        (["method=fixmatch,supervised"], ["fixmatch-resnet8-digits-100 s0", "supervised-resnet8-digits-100 s0"]),
        (["method=zero_shot", "teacher=resnet8"], ["zero_shot-digits s0"]),
        (["loss=kd,kd_noce"], ["ce+kd-resnet8-digits-100 s0", "kd-resnet8-digits-100 s0"]),
        (
            ["method=supervised", "loss=ce,evidential"],
            ["supervised-ce-resnet8-digits-100 s0", "supervised-evidential-resnet8-digits-100 s0"],
        ),
        (["schedule.lr=0.1,0.2"], ["kd-resnet8-digits-100 lr=0.1 s0", "kd-resnet8-digits-100 lr=0.2 s0"]),
        (
            ["teacher=resnet8,vgg8_cifar"],  # with the networks their `args` differ, which tell nothing more
            ["kd-resnet8-digits-100 teacher.model=resnet8 s0", "kd-resnet8-digits-100 teacher.model=vgg8_cifar s0"],
        ),
        (
            ["loss.kd.temperature=1,4"],  # the teacher has a temperature too
            ["kd-resnet8-digits-100 kd.temperature=1.0 s0", "kd-resnet8-digits-100 kd.temperature=4.0 s0"],
        ),
    ],
)
def test_runs_are_called_after_what_differs(composer, words, wanted):
    assert names(composer, *words) == wanted


def test_only_runs_that_would_be_called_alike_have_keys(composer):
    one, other = (composer.typed([DEMO, *words]) for words in (["loss=ce"], ["loss=kd"]))
    rate, lr = other.replace(schedule=other.schedule.replace(lr=0.5)), other.schedule.lr
    assert short_names([one, other, rate]) == [
        "ce-resnet8-digits-100 s0",
        f"kd-resnet8-digits-100 lr={lr} s0",
        "kd-resnet8-digits-100 lr=0.5 s0",
    ]


def test_what_another_run_needs_is_called_so(composer):
    students = [composer.typed([DEMO, *words]) for words in ([], ["teacher.model.args.width=8"])]
    runs = [run for config in students for run in teacher_runs(config, config.teacher).items()]
    found = short_names([config for _, config in runs], [role for role, _ in runs])
    widths = [config.students[0].args["width"] for _, config in runs]
    net = runs[0][1].students[0].name
    assert found == [f"teacher {net}-digits width={width} s0" for width in widths]


def test_runs_that_nothing_tells_apart_have_a_number(composer):
    config = composer.typed([DEMO])
    elsewhere = config.replace(execution=config.execution.replace(outputs="elsewhere"))
    assert short_names([config, elsewhere]) == ["kd-resnet8-digits-100 s0", "kd-resnet8-digits-100 #2 s0"]


def test_a_name_ends_with_its_seed():
    name = "kd-resnet8-digits-100 lr=0.1 s12"
    assert (kind_of(name), seed_of(name)) == ("kd-resnet8-digits-100 lr=0.1", "s12")
    assert (kind_of("a"), seed_of("a")) == ("a", "")


def test_a_thousand_runs_have_names_at_once(composer):
    config = composer.typed([DEMO])
    rates = [config.replace(schedule=config.schedule.replace(lr=0.001 * (1 + i))) for i in range(50)]
    configs = [rate.replace(seed=seed) for rate in rates for seed in range(20)]
    began = time.process_time()
    found = short_names(configs)
    assert time.process_time() - began < 3
    assert len(set(found)) == 1000
