"""What networks do between images: numbers worked out by hand, and a run's analysis from end to end."""

import json
import math
import shutil

import pytest
import torch

from kdrun.cli.analyze import main
from kdrun.cli.table import main as table_main
from kdrun.core.errors import KdrunError
from kdrun.results.analysis.vicinal import (
    Answers,
    Options,
    Pairs,
    ask,
    by_lambda,
    class_similarity,
    correlation,
    deviation,
    measurements,
)
from kdrun.runs.record import find_records, read_record
from tests.conftest import FAST, TEACHER


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


P = float64([[0.8, 0.2], [0.4, 0.6]])
Q = float64([[0.5, 0.5], [0.7, 0.3]])
PAIRS = Pairs(torch.tensor([0, 1]), torch.tensor([1, 0]), float64([0.25, 1.0]))


def test_deviation_by_hand():
    got = deviation(Answers(P.log(), Q.log()), PAIRS)
    # 1/4 (.8, .2) + 3/4 (.4, .6) = (.5, .5), which the first mixed image gets; the second one is (.4, .6) itself
    assert got[0].item() == pytest.approx(0, abs=1e-15)
    assert got[1].item() == pytest.approx(0.4 * math.log(0.4 / 0.7) + 0.6 * math.log(0.6 / 0.3))


def test_deviation_where_probabilities_vanish():
    sure = Answers(float64([[0, -torch.inf], [-torch.inf, 0]]), float64([[0.5, 0.5], [0.0, 1.0]]).log())
    assert deviation(sure, Pairs(PAIRS.target, PAIRS.partner, float64([0.5, 1.0]))).tolist() == [0, 0]


def test_bins_of_lambda():
    bins = by_lambda(float64([1, 3, 5, 7]), float64([0, 0.01, 0.5, 1]))
    assert bins.shape == (20, 2)
    assert bins[[0, 10, 19]].tolist() == [[2, 2], [1, 5], [1, 7]]
    assert bins[1, 0] == 0
    assert bins[1, 1].isnan()  # an empty bin has no mean


def test_class_similarity_by_hand():
    p = float64([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0]])
    got = class_similarity(p, torch.tensor([0, 0, 1]))  # means (.5, .5, 0), (.6, .8, 0), none
    cosine = (0.3 + 0.4) / math.sqrt(0.5)
    torch.testing.assert_close(got[:2, :2], float64([[1, cosine], [cosine, 1]]))
    assert got[2].isnan().all()
    assert got[:, 2].isnan().all()


def symmetric(a, b, c):
    return float64([[9, a, b], [a, 9, c], [b, c, 9]])


def test_correlation_of_what_is_off_the_diagonal():
    assert correlation(symmetric(1, 2, 3), symmetric(10, 20, 30)) == pytest.approx(1)
    assert correlation(symmetric(1e-9, 2e-9, 3e-9), symmetric(3, 2, 1)) == pytest.approx(-1)
    assert correlation(symmetric(1, 2, 4), symmetric(0, 3, 3)) == pytest.approx(0.755929, abs=1e-6)
    assert math.isnan(correlation(symmetric(1, 1, 1), symmetric(1, 2, 3)))
    assert math.isnan(correlation(symmetric(1, 2, torch.nan), symmetric(1, torch.nan, 3)))  # one pair of classes left


def test_a_mixed_image_belongs_to_its_dominant_class():
    pairs = Pairs(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), float64([0.5, 0.4, 0.9]))
    assert pairs.dominant.tolist() == [0, 2, 2]


def test_student_beside_teacher_by_hand():
    other = Answers(P.log(), P.log())
    found = measurements({"student": Answers(P.log(), Q.log()), "teacher": other}, PAIRS)
    student, teacher = found["student"].numbers, found["teacher"].numbers
    kl = (P * (P / Q).log()).sum(1).mean().item()
    assert student["alignment_clean"] == 0
    assert student["alignment_mixed"] == student["alignment_degradation"] == pytest.approx(kl)
    assert student["linearity_gain"] == pytest.approx(teacher["linearity"] - student["linearity"])
    assert student["linearity_gain"] > 0  # the teacher calls the second mixed image what it calls the other one
    entropy = -(Q * Q.log()).sum(1).mean().item()
    assert student["entropy_mixed"] == pytest.approx(entropy)
    assert student["entropy_gap_mixed"] == pytest.approx(teacher["entropy_mixed"] - entropy)
    assert math.isnan(student["linearity_peak"])  # no lambda there
    assert math.isnan(student["similarity_correlation"])  # two classes are one pair
    assert "linearity_gain" not in teacher


def of_pixels(view):
    """Log-probabilities that are linear in the pixels: (B, 2, 1, 1), which add up to 255."""
    pixels = view.pixels.flatten(1)
    return (pixels if pixels.is_floating_point() else pixels.float() / 255).log()


def net(view):
    return {"net": of_pixels(view)}


def two_channels(n):
    first = torch.arange(1, n + 1, dtype=torch.uint8)
    return torch.stack([first, 255 - first], 1)[:, None, None, :]


def test_a_network_that_is_linear_in_probability_deviates_by_nothing():
    images, target = two_channels(100), torch.arange(100) % 2
    options = Options(run=["x"], batch_size=16)
    answers, pairs = ask(lambda v: {"linear": of_pixels(v)}, images, torch.arange(100), target, options)
    assert deviation(answers["linear"], pairs).abs().max() < 1e-10
    assert len(pairs.share) == 100
    assert pairs.share.min() > 0
    assert pairs.share.std() == pytest.approx(1 / math.sqrt(12), abs=0.05)
    blocks = torch.arange(100) // 16
    assert torch.equal(blocks[pairs.partner], blocks)  # pairs within a batch

    squared, _ = ask(lambda v: {"net": 2 * of_pixels(v)}, images, torch.arange(100), target, options)
    assert deviation(squared["net"], pairs).mean() > 1e-3


def test_the_same_seed_gives_the_same_pairs_and_no_image_twice():
    images, target = two_channels(100), torch.arange(100) % 2

    def asked(**keys):
        return ask(net, images, torch.arange(10, 90), target, Options(run=["x"], **keys))

    answers, pairs = asked(batches=2, batch_size=32)
    again, same = asked(batches=2, batch_size=32)
    assert torch.equal(answers["net"].mixed, again["net"].mixed)
    assert torch.equal(pairs.share, same.share)
    assert len(answers["net"].clean.unique(dim=0)) == len(pairs.share) == 64
    assert not torch.equal(asked(batches=2, batch_size=32, seed=1)[1].share, pairs.share)
    assert len(asked(batch_size=32)[1].share) == 80


def test_one_image_meets_itself():
    answers, pairs = ask(net, two_channels(1), torch.tensor([0]), torch.tensor([0]), Options(run=["x"]))
    numbers = measurements(answers, pairs)["net"].numbers
    assert numbers["linearity"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(numbers["similarity_correlation"])


def test_logits_that_are_no_numbers_are_refused():
    def broken(view):
        return {"net": torch.full((len(view.index), 2), torch.nan)}

    with pytest.raises(KdrunError, match="net: logits on clean images that are not finite"):
        ask(broken, two_channels(4), torch.arange(4), torch.zeros(4, dtype=torch.int64), Options(run=["x"]))


@pytest.mark.slow
def test_a_run_s_analysis_is_in_its_record_its_folder_and_tables(train, outputs):
    assert train(*FAST, *TEACHER, "method=mixup_distill", "teacher.temperature=2") == 0
    [directory] = [d for d, r in find_records(outputs) if r["method"] == "mixup_distill"]
    asked = ["vicinal", f"run={directory}", "batches=2", "batch_size=100"]
    text = main(asked)
    assert "200 of 1257 train images, not augmented, in 2 batches of up to 100" in text
    folder = directory / "analysis"
    first = (folder / "vicinal.json").read_bytes()
    content = json.loads(first)
    assert sum(b["images"] for b in content["nets"]["teacher"]["lambda_bins"]) == content["images"] == 200
    assert len(content["nets"]["student"]["class_similarity"]["mixed"]) == 10
    metrics = read_record(directory)["metrics"]
    assert metrics["vicinal/student/linearity"] == content["nets"]["student"]["metrics"]["linearity"] > 0
    gain = metrics["vicinal/teacher/linearity"] - metrics["vicinal/student/linearity"]
    assert metrics["vicinal/student/linearity_gain"] == gain
    for name in ("linearity", "similarity"):
        assert (folder / f"vicinal-{name}.png").read_bytes().startswith(b"\x89PNG")
    pictures = [(folder / f"vicinal-{name}.svg").read_bytes() for name in ("linearity", "similarity")]

    main(asked)
    assert (folder / "vicinal.json").read_bytes() == first
    assert [(folder / f"vicinal-{name}.svg").read_bytes() for name in ("linearity", "similarity")] == pictures
    table = table_main([f"outputs={outputs}", "metric=vicinal/linearity"])
    assert f"{metrics['vicinal/student/linearity']:.4f}" in table

    assert "400 of 400 test images" in main(["vicinal", f"run={directory}", "split=test"])
    assert read_record(directory)["metrics"].items() > metrics.items()
    assert "vicinal_test/student/linearity" in read_record(directory)["metrics"]

    [supervised] = [d for d, r in find_records(outputs) if r["method"] == "supervised"]
    assert "linearity_gain" not in main(["vicinal", f"run={supervised}", "batches=1"])
    shutil.rmtree(supervised)
    with pytest.raises(KdrunError, match=r"its teacher \(run \w+\) is not below"):
        main(asked)
