"""The loop beside the bare step, of distillation and of FixMatch."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from kdrun.losses.logits import kd
from scripts.bench.harness import ROUNDS, LoopBench, report, report_pairs


def bench_loop() -> None:
    """KD resnet56 -> resnet20, 32 px, batch 64: kdrun's loop over the same networks on prebuilt tensors."""
    bench = LoopBench("loss=kd", "student=resnet20", "teacher=resnet56", steps=40)
    teacher = bench.give_teacher()
    batch, wanted = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64) % 100

    def bare() -> float:
        student = bench.network(bench.config.students[0])
        optimizer = bench.optimizer(student)
        started = time.perf_counter()
        for _ in range(bench.steps):
            with torch.no_grad():
                teacher_logits = teacher(batch)
            logits = student(batch)
            loss = 0.1 * F.cross_entropy(logits, wanted) + 0.9 * kd(logits, teacher_logits, 4.0).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / bench.steps

    report_pairs("KD resnet56 -> resnet20, batch 64", bench.seconds, bare)


def bench_fixmatch() -> None:
    """FixMatch wrn_16_1, 32 px, 64 + 192 pairs: kdrun's loop with its views over the same network on prebuilt views."""
    overrides = [
        "method=fixmatch", "loss=ce", "student=wrn_16_1", "schedule=fixmatch", "schedule.eval_every_steps=null",
        "method.unlabeled_ratio=3", "method.threshold=0", "dataset.num_labels=400", "views=official",
    ]  # fmt: skip
    plain = LoopBench(*overrides, steps=10)
    known, pairs = 64, 192
    batch = torch.randn(known + 2 * pairs, 3, 32, 32).to(memory_format=torch.channels_last)
    wanted = torch.arange(known) % 100

    def bare_step(bench: LoopBench, precision: str) -> Callable[[], float]:
        def bare() -> float:
            student = bench.network(bench.config.students[0])
            optimizer = bench.optimizer(student)
            parameters = list(student.parameters())
            average = [p.detach().clone() for p in parameters]
            started = time.perf_counter()
            for _ in range(bench.steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = student(batch)
                labeled, weak, strong = logits.float().split([known, pairs, pairs])
                confidence, label = weak.detach().softmax(1).max(1)
                unlabeled = (F.cross_entropy(strong, label, reduction="none") * (confidence >= 0)).mean()
                loss = F.cross_entropy(labeled, wanted) + unlabeled
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, 0.001)
            return (time.perf_counter() - started) / bench.steps

        return bare

    report_pairs("FixMatch wrn_16_1, 64 + 192 pairs", plain.seconds, bare_step(plain, "fp32"))
    half = LoopBench(*overrides, "schedule.precision=bf16", steps=10)
    report_pairs("  the same, bf16", half.seconds, bare_step(half, "bf16"))
    paired = [(half.seconds(), plain.seconds()) for _ in range(ROUNDS)]
    report("  bf16 / fp32 (channels_last both), kdrun's loop", [a / b for a, b in paired], "")
