"""Two heads beside one."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.harness import LoopBench, report, rounds, write_random_images


def bench_dho() -> None:
    """A step of DHO beside one of a single head (method=sho) on the same batches, then DHO's with kept logits.

    The heads have 100 classes; the teacher is as small as the student, so that its pass hides little. Kept logits are
    computed before the first step, so the steps of no epoch ask the teacher.
    """
    small = ("student=resnet8", "teacher=resnet8")
    large = ("student=timm", "student.name=resnet18", "teacher=train", "teacher.model.name=resnet18")
    kept = ("teacher.cache.mode=views", "teacher.cache.num_views=1")
    with tempfile.TemporaryDirectory() as folder:
        wide = write_random_images(Path(folder) / "d.npz", 400, 64)
        compare_heads("resnet8, 32 px, 64 + 64 images", small, kept, [], 20)
        compare_heads("resnet18, 64 px, 32 + 32 images", (*large, "schedule.batch_size=32"), kept, wide, 6)


def compare_heads(what: str, networks: Sequence[str], cache: Sequence[str], data: Sequence[str], steps: int) -> None:
    """One head, two heads, and two heads with the teacher's logits kept, in turn."""
    two = LoopBench("method=dho", *networks, steps=steps, data=data)
    two.give_teacher()
    one = LoopBench("method=sho", *networks, steps=steps, data=data)
    one.teacher = two.teacher
    cached = LoopBench("method=dho", *networks, *cache, steps=steps, data=data)
    cached.give_teacher()
    cached.keep_logits()
    passes: list[None] = []
    cached.teacher.network.register_forward_hook(lambda *_: passes.append(None))  # type: ignore[union-attr]
    timed = {
        f"{what}: one head": one.seconds,
        "  two heads (DHO)": two.seconds,
        "  two heads, the teacher's logits kept": cached.seconds,
    }
    for call in timed.values():
        call()
    found = [[call() for call in timed.values()] for _ in range(rounds())]
    for name, values in zip(timed, zip(*found, strict=True), strict=True):
        report(name, [1e3 * value for value in values], "ms")
    report("  two heads / one head (target: 1.03)", [b / a for a, b, _ in found], "")
    report("  two heads, kept / not kept", [c / b for _, b, c in found], "")
    report("  passes of the teacher in the steps with kept logits", [len(passes)], "")
