"""Two students at once beside their bare steps."""

from collections.abc import Callable

import torch

from kdrun.data.views.view import Samples, View
from kdrun.methods.step import Context
from kdrun.methods.uncertainty import Entropy
from kdrun.models.output import Output
from scripts.bench.by_hand import peers_step
from scripts.bench.harness import LoopBench, report, report_pairs, rounds, seconds_of

ONE = ("method=uncertainty_distill", "loss=kd_40_40")  # a student without peers


def bench_students() -> None:
    """Peers resnet56 -> resnet20, wrn_16_2, 32 px, batch 64: kdrun's loop over the same networks on prebuilt tensors.

    Then the weight by the teacher's entropy, timed by itself beside a bare step of resnet20 alone: two steps, one with
    it and one without, differ by chance more than by what it takes. Then the trio.
    """
    bench = LoopBench("method=peer_distill", "students=[resnet20,wrn_16_2]", "teacher=resnet56", steps=10)
    teacher = bench.give_teacher()
    batch, wanted = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64) % 100
    report_pairs(
        "peers resnet56 -> resnet20, wrn_16_2, batch 64", bench.seconds, peers_step(bench, teacher, batch, wanted)
    )
    alone = LoopBench(*ONE, "student=resnet20", "teacher=resnet56", steps=10)
    step = peers_step(alone, teacher, batch, wanted)
    entropy = Entropy(Entropy.Config(name="entropy"), bench.teacher)  # type: ignore[arg-type]
    view, seen = View(batch, wanted), Output(torch.randn(64, 100), {})
    ctx = Context(0, 0, 1, torch.device("cpu"))
    step(), seconds_of(lambda: entropy.weight(view, seen, ctx), 200)
    pairs = [(seconds_of(lambda: entropy.weight(view, seen, ctx), 200), step()) for _ in range(rounds())]
    report("  the weight by the teacher's entropy", [1e3 * a for a, _ in pairs], "ms")
    report("  of the bare step of resnet20 alone", [100 * a / b for a, b in pairs], "%")

    bench_trio()


def bench_trio() -> None:
    """The dual-student paper's networks (arXiv 2511.18826), 224 px, batch 8, prebuilt: what a second student adds.

    Beside it the sum of bare steps, one of resnet18 with the teacher's pass and one of mobilenetv2_100 without.
    """
    common = ("teacher=train", "teacher.model.name=resnet50")
    both = LoopBench("method=peer_distill", "students=[resnet18,mobilenetv2_100]", *common, steps=3)
    first, second = (
        LoopBench(*ONE, f"students=[{name}]", *common, steps=3) for name in ("resnet18", "mobilenetv2_100")
    )
    teacher = both.give_teacher()
    first.teacher = both.teacher
    pixels = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8).to(memory_format=torch.channels_last)
    batch, wanted = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last), torch.arange(8)
    shown = {"labeled": Samples({"weak": View(pixels, wanted)}, wanted)}
    taught = torch.randn(8, 100)
    timed: dict[str, Callable[[], float]] = {
        "resnet50 -> resnet18, 224 px, batch 8: bare step": peers_step(first, teacher, batch, wanted),
        "  bare step of mobilenetv2_100, without the teacher's pass": peers_step(
            second, lambda _: taught, batch, wanted
        ),
        "  kdrun's step of resnet18 alone": lambda: first.seconds(shown),
        "  kdrun's step of both": lambda: both.seconds(shown),
    }
    for call in timed.values():
        call()
    found = [[call() for call in timed.values()] for _ in range(rounds())]
    for what, values in zip(timed, zip(*found, strict=True), strict=True):
        report(what, [1e3 * value for value in values], "ms")
    report("  kdrun: both / resnet18 alone (paper: 1.63)", [two / one for _, _, one, two in found], "")
    report("  bare: sum / resnet18 alone", [(a + b) / a for a, b, _, _ in found], "")
    report("  kdrun's step of both / sum of the bare steps", [two / (a + b) for a, b, _, two in found], "")
