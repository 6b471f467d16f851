"""Training loops as the peers write them, fixed before kdrun is tuned, so that a ratio to them means something.

Networks, losses and optimizers are kdrun's own and the same as on its side; what differs is the loop: how images are
read and augmented, memory format, optimizer kernels, averages and what is asked of the device in each step. All of it
is our code, after what was read of theirs: PEERS_KD.md and PEERS_SSL.md by section, and their files by name. Where a
choice of theirs would be slow on this machine alone (more workers than cores), the better one is taken. Workers are
started and a first step is done before the clock runs, which the peers pay for in each epoch.

Not here, so no figure: two students (no authors' code), KD-FixMatch (none), mixup distillation (another framework),
weights by uncertainty (none), one head on labels and teacher (none of its own).
"""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from tqdm import tqdm

from kdrun.losses.logits import kd
from scripts.bench.harness import clock
from scripts.bench.peer_images import MEAN, STD, Pictures, WeakAndStrong, batches, large_images, small_images


@dataclass
class Given:
    """What a loop is given of kdrun's side."""

    student: nn.Module
    """Takes normalised float32 pixels; its memory is contiguous (NCHW)."""
    teacher: nn.Module | None
    images: np.ndarray
    """(N, H, W, C) uint8."""
    labels: np.ndarray
    """(N,) int64."""
    batch: int
    """Labeled images a step."""
    steps: int
    """That are timed; one is done before."""
    device: torch.device
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    unlabeled: int = 0
    """Unlabeled images a step."""
    extra: nn.Module | None = None
    """A loss term with parameters of its own."""

    def pictures(self, transform: Callable[[Any], Any], negatives: int = 0) -> Pictures:
        return Pictures(self.images, self.labels, transform, negatives)


@dataclass
class Ran:
    seconds: float
    """Of one step."""
    loss: float
    """Mean over the steps."""


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's logits, teacher's, target) -> ()."""


class Average:
    """A meter: last value, sum, count and mean, as all peers keep them (PEERS_KD.md 4: `data_time`)."""

    def __init__(self) -> None:
        self.value: Any = 0.0
        self.total: Any = 0.0
        self.count = 0
        self.mean: Any = 0.0

    def update(self, value: Any, count: int = 1) -> None:
        self.value = value
        self.total += value * count
        self.count += count
        self.mean = self.total / self.count


def top(logits: Tensor, target: Tensor, ks: Sequence[int] = (1, 5)) -> list[Tensor]:
    """Accuracies in percent, (1,) each, in each training step (mdistiller and RepDistiller, `accuracy`)."""
    with torch.no_grad():
        most = min(max(ks), logits.shape[1])
        found = logits.topk(most, 1, True, True).indices.t()
        right = found.eq(target.view(1, -1).expand_as(found))
        return [right[:k].reshape(-1).float().sum(0, keepdim=True) * (100 / len(target)) for k in ks]


def default_sgd(given: Given, modules: Sequence[nn.Module], nesterov: bool = False) -> torch.optim.Optimizer:
    """Kernels as torch picks them on the device: one for each parameter on a CPU (mdistiller, engine/trainer.py)."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(
        parameters, given.lr, momentum=given.momentum, weight_decay=given.weight_decay, nesterov=nesterov
    )


def logits_and_feature(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C), and what the classifier is given (B, D): the peers' networks always return their features."""
    timms: Any = network
    feature = timms.forward_head(timms.forward_features(pixels), pre_logits=True)
    return timms.get_classifier()(feature), feature


Contrast = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Callable[[], None]]]
"""(student's features, teacher's, target, index) -> (), of a loss that compares images, and what follows the step."""


def mdistiller(
    given: Given, loss: Loss, transform: Callable[[Any], Any] | None = None, pin: bool = False,
    contrast: Contrast | None = None, negatives: int = 16384,
) -> Ran:  # fmt: skip
    """mdistiller, engine/trainer.py: `train_epoch` and `train_iter`; with `contrast` its CRDTrainer."""
    teacher = given.teacher
    if teacher is None:
        raise ValueError("mdistiller's loop distills")
    side = given.images.shape[1]
    dataset = given.pictures(transform or small_images(side), negatives if contrast is not None else 0)
    drawn = batches(dataset, given.batch, given.steps, 2, pin)  # PEERS_KD.md 4: 2 workers
    given.student.train()
    optimizer = default_sgd(given, [given.student, *([given.extra] if given.extra is not None else [])])
    meters = {name: Average() for name in ("training_time", "data_time", "losses", "top1", "top5")}
    with open(os.devnull, "w") as nowhere, tqdm(total=given.steps + 1, file=nowhere) as bar:
        started = 0.0
        for step in range(given.steps + 1):
            if step == 1:
                started = clock(given.device)
            data = next(drawn)
            optimizer.zero_grad()
            began = time.time()
            pixels, target, index = data[:3]
            meters["data_time"].update(time.time() - began)  # PEERS_KD.md 4: always about 0
            pixels = pixels.float().to(given.device, non_blocking=True)
            target, index = (v.to(given.device, non_blocking=True) for v in (target, index))
            if contrast is not None:
                data[3].to(given.device, non_blocking=True)  # the negatives of each image: B * 16385 indices
            logits, feature = logits_and_feature(given.student, pixels)
            with torch.no_grad():
                taught, teachers = logits_and_feature(teacher, pixels)
            value = loss(logits, taught, target)
            if contrast is not None:
                compared, remember = contrast(feature, teachers, target, index)
                value = value + compared
            value.backward()
            optimizer.step()
            if contrast is not None:
                remember()
            meters["training_time"].update(time.time() - began)
            # accuracies and the loss go to the host in each step: the device is waited for (engine/trainer.py)
            top1, top5 = top(logits, target)
            meters["losses"].update(value.cpu().detach().numpy().mean(), len(pixels))
            meters["top1"].update(top1.cpu().numpy()[0], len(pixels))
            meters["top5"].update(top5.cpu().numpy()[0], len(pixels))
            # a line is formatted and drawn in each step
            bar.set_description(" | ".join(f"{name}: {meter.mean:.3f}" for name, meter in meters.items()))
            bar.update()
        seconds = (clock(given.device) - started) / given.steps
    return Ran(seconds, float(meters["losses"].mean))


def repdistiller(given: Given, loss: Loss) -> Ran:
    """RepDistiller, helper/loops.py: `train_distill`, without a teacher `train_vanilla`; TTM's and DIST's CIFAR loops
    are forks of it (PEERS_KD.md 1, zkxufo/TTM)."""
    drawn = batches(given.pictures(small_images(given.images.shape[1])), given.batch, given.steps, 8)
    given.student.train()
    optimizer = default_sgd(given, [given.student])
    batch_time, data_time, losses, top1, top5 = (Average() for _ in range(5))
    started = 0.0
    end = time.time()
    for step in range(given.steps + 1):
        if step == 1:
            started = clock(given.device)
        pixels, target, index = next(drawn)
        data_time.update(time.time() - end)
        pixels, target, index = (v.to(given.device) for v in (pixels.float(), target, index))  # the host waits
        logits, _ = logits_and_feature(given.student, pixels)
        taught = logits
        if given.teacher is not None:
            with torch.no_grad():
                taught, _ = logits_and_feature(given.teacher, pixels)
        value = loss(logits, taught, target)
        found = top(logits, target)
        losses.update(value.item(), len(pixels))  # before the backward pass: the device runs dry
        top1.update(found[0][0], len(pixels))
        top5.update(found[1][0], len(pixels))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        batch_time.update(time.time() - end)
        end = time.time()
        if step % 100 == 0:
            " ".join(f"{float(meter.mean):.4f}" for meter in (batch_time, data_time, losses, top1, top5))
    return Ran((clock(given.device) - started) / given.steps, losses.mean)


# ---------------------------------------------------------------------------------------------------------- FixMatch


class NamedAverage:
    """An average of weights over the state dictionaries, name by name (PEERS_SSL.md 1 "EMA impl.", 4.6: 395 ops)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.parameters = [name for name, _ in network.named_parameters()]
        self.buffers = [name for name, _ in network.named_buffers()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        live, kept = network.state_dict(), self.network.state_dict()
        for name in self.parameters:
            kept[name].copy_(self.decay * kept[name] + (1.0 - self.decay) * live[name].detach())
        for name in self.buffers:
            kept[name].copy_(live[name])


def shuffled_together(pixels: Tensor, groups: int, back: bool = False) -> Tensor:
    """Images of all groups in turn, a copy of the batch, so that devices would share them alike; `back` undoes it."""
    shape = (groups, -1) if back else (-1, groups)
    return pixels.reshape(*shape, *pixels.shape[1:]).transpose(0, 1).reshape(pixels.shape)


def kekmodel(given: Given, threshold: float = 0.95, decay: float = 0.999) -> Ran:
    """kekmodel/FixMatch-pytorch, train.py: `train`. Four workers for each of two loaders by default; PEERS_SSL.md 4.1
    measured two and two on two cores."""
    views = WeakAndStrong(given.images.shape[1])
    labeled = batches(given.pictures(views.weak), given.batch, given.steps, 4)
    unlabeled = batches(given.pictures(views), given.unlabeled, given.steps, 4)
    student = given.student.train()
    spared = [p for p in student.parameters() if p.ndim <= 1]
    kernels = [p for p in student.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": given.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        given.lr, momentum=given.momentum, nesterov=True,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(math.pi * 7 / 16 * step / 2**20))
    average = NamedAverage(student, decay)
    batch_time, data_time, losses, losses_x, losses_u, masks = (Average() for _ in range(6))
    groups = 2 * given.unlabeled // given.batch + 1
    with open(os.devnull, "w") as nowhere, tqdm(total=given.steps + 1, file=nowhere) as bar:
        started = 0.0
        end = time.time()
        for step in range(given.steps + 1):
            if step == 1:
                started = clock(given.device)
            pixels, target, _ = next(labeled)
            (weak, strong), _, _ = next(unlabeled)
            data_time.update(time.time() - end)
            joint = shuffled_together(torch.cat((pixels, weak, strong)), groups).to(given.device)
            target = target.to(given.device)
            logits = shuffled_together(student(joint), groups, back=True)
            known = logits[: given.batch]
            of_weak, of_strong = logits[given.batch :].chunk(2)
            supervised = F.cross_entropy(known, target)
            confidence, label = of_weak.detach().softmax(-1).max(-1)
            mask = confidence.ge(threshold).float()
            unsupervised = (F.cross_entropy(of_strong, label, reduction="none") * mask).mean()
            value = supervised + unsupervised
            value.backward()
            # PEERS_SSL.md 4.6: four `.item()` a step, for each of which the host waits
            losses.update(value.item())
            losses_x.update(supervised.item())
            losses_u.update(unsupervised.item())
            optimizer.step()
            scheduler.step()
            average.update(student)
            student.zero_grad()
            batch_time.update(time.time() - end)
            end = time.time()
            masks.update(mask.mean().item())
            shown = (data_time, batch_time, losses, losses_x, losses_u, masks)
            rate = scheduler.get_last_lr()[0]
            bar.set_description(f"lr {rate:.6f} " + " ".join(f"{meter.mean:.4f}" for meter in shown))
            bar.update()
        seconds = (clock(given.device) - started) / given.steps
    return Ran(seconds, losses.mean)


# --------------------------------------------------------------------------------------------------------------- DHO


class TwoHeads(nn.Module):
    """A student whose features go to two linear classifiers."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        width = network.get_classifier().in_features  # type: ignore[operator]
        self.kd_head = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, feature = logits_and_feature(self.network, pixels)
        return logits, self.kd_head(feature)


def dho_authors(given: Given, temperature: float = 2.0) -> Ran:
    """erjui/DHO, train_others.py: each stream passes the teacher and the student by itself (PAPERS.md 5.4, 12)."""
    teacher = given.teacher
    if teacher is None:
        raise ValueError("DHO distills")
    # they crop from files of several hundred pixels; here from the images of the case
    side = given.images.shape[1]
    crops = large_images(side, (0.5, 1.0), normalise=False)
    labeled = batches(given.pictures(crops), given.batch, given.steps, 8, pin=True)
    unlabeled = batches(given.pictures(crops), given.unlabeled, given.steps, 8, pin=True)
    classes = int(given.labels.max()) + 1
    student = TwoHeads(given.student, classes).to(given.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 10_000))
    for_student, for_teacher = transforms.Normalize(MEAN, STD), transforms.Normalize(MEAN, STD)
    total = 0.0
    with open(os.devnull, "w") as nowhere, tqdm(total=given.steps + 1, file=nowhere) as bar:
        started = 0.0
        for step in range(given.steps + 1):
            if step == 1:
                started = clock(given.device)
            pixels, target, _ = (v.to(given.device) for v in next(labeled))
            more = next(unlabeled)[0].to(given.device)
            # each batch is normalised twice, for each network
            own, own_more = for_student(pixels), for_student(more)
            others, others_more = for_teacher(pixels), for_teacher(more)
            with torch.no_grad():
                taught, taught_more = teacher(others), teacher(others_more)
            ce_logits, kd_logits = student(own)
            _, kd_more = student(own_more)
            value = 0.5 * F.cross_entropy(ce_logits, target) + 0.5 * (
                kd(kd_logits, taught, temperature).mean() + kd(kd_more, taught_more, temperature).mean()
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()
            total += value.item()  # the host waits
            bar.update()
        seconds = (clock(given.device) - started) / given.steps
    return Ran(seconds, total / (given.steps + 1))
