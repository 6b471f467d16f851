"""Each number of conf/paper stands beside a row of ours, or the file says why none can."""

from functools import cache

import pytest
import torch

from kdrun.core.paths import CONF_DIR
from kdrun.methods.step import Setup
from kdrun.results.papers import read_paper
from tests.config.papers import faults, tables_beside

PAPERS = sorted((CONF_DIR / "paper").glob("*.yaml"))
beside = cache(tables_beside)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_number_is_beside_a_row_that_is_run_or_says_why_not(path):
    assert faults(path, beside(path.stem)) == []


FIRST = "  - {table: abstract, row: KD, column: r18, mean: 81.8, std: null, n: null, protocol: unknown, tag: digest}"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("tag: digest}", "}", "tag: missing; a value is required"),
        ("tag: digest}", "tag: memory}", "tag: 'memory' is not allowed"),
        ("row: KD", "row: DK", "abstract, DK, r18, top1: no table runs it; add one, or say why not in published_only"),
        ("column: r18", "column: r50", "abstract, KD, r50, top1: no table runs it; "),
        ("mean: 81.8", "metric: ece, mean: 81.8", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_a_number_without_source_or_row_is_refused_with_its_line(tmp_path, old, new, line):
    text = (CONF_DIR / "paper" / "dual_student.yaml").read_text()
    assert FIRST in text
    path = tmp_path / "dual_student.yaml"
    path.write_text(text.replace(FIRST, FIRST.replace(old, new)))
    number = text.splitlines().index(FIRST) + 1
    found = faults(path, beside("dual_student"))
    assert [told[: len(f"{path.name}:{number}: {line}")] for told in found] == (
        [] if line is None else [f"{path.name}:{number}: {line}"]
    )


def test_a_reason_for_a_row_that_a_table_runs_and_a_file_without_source_are_refused(tmp_path):
    text = (CONF_DIR / "paper" / "dual_student.yaml").read_text()
    path = tmp_path / "dual_student.yaml"
    path.write_text(text + "published_only: [{rows: [hard only], columns: [mv2], why: it is dear to run}]\n")
    [told] = faults(path, beside("dual_student"))
    number = next(k for k, line in enumerate(text.splitlines(), 1) if "row: hard only, column: mv2" in line)
    assert told == (
        f"dual_student.yaml:{number}: ablation, hard only, mv2, top1: table=dual_student_imagenet100 runs it, though "
        "published_only says 'it is dear to run'"
    )
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("source:")))
    assert faults(path, {}) == ["dual_student.yaml.source: missing; a value is required"]


def test_no_shipped_reason_is_longer_than_a_line():
    assert [e.why for path in PAPERS for e in read_paper(path.stem).published_only if len(e.why) > 110] == []


@pytest.mark.parametrize(
    ("student", "alone", "with_head"),  # in millions, with a thousand classes: tables 4 and 9 of arXiv 2505.07675
    [
        ("resnet18", 11.69, 12.20),
        ("resnet50", 25.56, 27.61),
        ("mobilenetv2_100", 3.50, 4.79),
        ("vit_base_patch16_224", 86.57, 87.34),
        ("vit_large_patch16_224", 304.33, 305.35),  # printed for L/14: it is the L/16 with a classifier that has these
    ],
)
def test_dho_s_parameters_are_the_published_ones(composer, student, alone, with_head):
    names = [f"student.name={student}", "student.pretrained=false", "student.file=null", "method.combination=fixed"]
    config = composer.typed(["experiment=dho/imagenet_r18", *names])
    setup = Setup(num_classes=1000, in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3, train_target=torch.zeros(1).long())
    with torch.device("meta"):
        method = config.method_class(config, setup)
    [network] = method.students.values()
    count = sum(p.numel() for p in network.parameters())
    head = sum(p.numel() for p in method.kd_head.parameters())
    assert (round(count / 1e6, 2), round((count + head) / 1e6, 2)) == (alone, with_head)
