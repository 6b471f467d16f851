"""What networks do between images, where mixup distillation teaches (Medina et al. 2026, arXiv 2606.12171).

x~ = lambda x_i + (1 - lambda) x_j with lambda ~ U(0, 1) for each image, pairs by a permutation within a batch, no
augmentation. p is the softmax at temperature 1, in float64. C is the number of classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.views import MixConfig
from kdrun.core.device import send
from kdrun.core.errors import KdrunError
from kdrun.core.files import write_json
from kdrun.core.seeding import generator
from kdrun.data.views.center import Center
from kdrun.data.views.mix import Mix
from kdrun.data.views.view import Predict, Source, View, clean, mapped
from kdrun.metrics import kl_divergence
from kdrun.results.analysis.options import Vicinal as Options
from kdrun.results.plots.figure import color, drawn, legend, marker, panels, places, told
from kdrun.runs.finished import FinishedRun
from kdrun.runs.metric import Metric
from kdrun.runs.record import finite
from kdrun.training.assembly import Assembly

LAMBDA_BINS = 20
PEAK = (0.45, 0.55)


@dataclass(frozen=True)
class Pairs:
    """Which images were mixed, and how."""

    target: Tensor
    """(N,) int64, the label of x_i."""
    partner: Tensor
    """(N,) int64, place of x_j among the N images; its own where an image is alone in its batch."""
    share: Tensor
    """(N,) float64, lambda."""

    @property
    def dominant(self) -> Tensor:
        """(N,) int64: the label of whichever of x_i and x_j has the larger share of x~; of x_i at one half."""
        return torch.where(self.share >= 0.5, self.target, self.target[self.partner])


@dataclass(frozen=True)
class Answers:
    """One network's log-probabilities, (N, C) float64."""

    clean: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class Findings:
    """Of one network."""

    numbers: dict[str, float]
    """Scalars by name; NaN where undefined. Nats, but for correlations in [-1, 1]."""
    bins: Tensor
    """(20, 2) float64: images, and their mean linearity, by lambda; NaN of a bin without images."""
    clean: Tensor
    """(C, C) float64, `class_similarity` on clean images."""
    mixed: Tensor


def deviation(answers: Answers, pairs: Pairs) -> Tensor:
    """L_NL = KL(lambda p(x_i) + (1 - lambda) p(x_j) || p(x~)) of each pair, (N,) nats; 0 where the network is linear.

    deviates: the authors add 1e-10 to both probabilities, we work with logarithms, because it is exact.
    """
    own, share = answers.clean, pairs.share[:, None]
    between = torch.logaddexp(share.log() + own, (1 - share).log() + own[pairs.partner])
    return kl_divergence(between, answers.mixed)


def by_lambda(values: Tensor, share: Tensor, bins: int = LAMBDA_BINS) -> Tensor:
    """(bins, 2) float64: number and mean of the values (N,) in each bin [lo, hi) of lambda; the last one holds 1."""
    which = (share * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, 2, dtype=torch.float64)
    sums.index_add_(0, which, torch.stack([torch.ones_like(values), values], 1))
    return torch.stack([sums[:, 0], sums[:, 1] / sums[:, 0]], 1)


def class_similarity(p: Tensor, label: Tensor) -> Tensor:
    """(C, C): the cosine of the mean probabilities (N, C) of two classes; NaN for a class without images.

    Args:
        label: (N,) int64, the class that an image counts for.
    """
    classes = p.shape[1]
    count = torch.bincount(label, minlength=classes)
    means = torch.zeros(classes, classes, dtype=p.dtype).index_add_(0, label, p) / count[:, None]
    means = F.normalize(means, dim=1)
    return means.matmul(means.T)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of the numbers above the diagonals of two symmetric matrices (C, C).

    Over the pairs of classes that both have; NaN with fewer than two of them, or where one matrix is constant there.
    """
    above = torch.ones_like(a, dtype=torch.bool).triu(1) & a.isfinite() & b.isfinite()
    x, y = a[above], b[above]
    if len(x) < 2:
        return torch.nan
    dx, dy = x - x.mean(), y - y.mean()
    if dx.norm() <= 1e-12 * x.norm() or dy.norm() <= 1e-12 * y.norm():  # constant but for rounding
        return torch.nan
    return dx.dot(dy).div(dx.norm() * dy.norm()).item()


def findings(answers: Answers, pairs: Pairs) -> Findings:
    """What one network does between images."""
    values = deviation(answers, pairs)
    peak = (pairs.share > PEAK[0]) & (pairs.share < PEAK[1])
    clean = class_similarity(answers.clean.exp(), pairs.target)
    mixed = class_similarity(answers.mixed.exp(), pairs.dominant)
    numbers = {
        "linearity": values.mean().item(),
        "linearity_peak": values[peak].mean().item(),
        "entropy_clean": _entropy(answers.clean),
        "entropy_mixed": _entropy(answers.mixed),
        "similarity_correlation": correlation(clean, mixed),
    }
    return Findings(numbers, by_lambda(values, pairs.share), clean, mixed)


def beside_teacher(student: Answers, teacher: Answers, own: Findings, other: Findings) -> dict[str, float]:
    """What a student makes of its teacher. Gains and gaps are above 0 where the teacher's number is the larger one."""
    alignment = {
        kind: kl_divergence(getattr(teacher, kind), getattr(student, kind)).mean().item() for kind in ("clean", "mixed")
    }
    return {
        "linearity_gain": other.numbers["linearity"] - own.numbers["linearity"],
        "entropy_gap_mixed": other.numbers["entropy_mixed"] - own.numbers["entropy_mixed"],
        "alignment_clean": alignment["clean"],
        "alignment_mixed": alignment["mixed"],
        "alignment_degradation": alignment["mixed"] - alignment["clean"],
        "similarity_to_teacher_clean": correlation(own.clean, other.clean),
        "similarity_to_teacher_mixed": correlation(own.mixed, other.mixed),
    }


def measurements(answers: Mapping[str, Answers], pairs: Pairs) -> dict[str, Findings]:
    """All networks; students also beside the one called `teacher`, where there is one."""
    out = {net: findings(own, pairs) for net, own in answers.items()}
    if "teacher" in out:
        for net in out.keys() - {"teacher"}:
            more = beside_teacher(answers[net], answers["teacher"], out[net], out["teacher"])
            out[net].numbers.update(more)
    return out


@torch.no_grad()
def ask(
    predict: Predict, images: Source, index: Tensor, target: Tensor, options: Options,
    device: torch.device | None = None, center: Center | None = None,
) -> tuple[dict[str, Answers], Pairs]:  # fmt: skip
    """All networks' answers on clean and on mixed images, and the pairs, on the CPU.

    Args:
        images: (M, H, W, C) uint8.
        index: (N,) int64, which of them may be used.
        target: (M,) int64.
        device: that of the networks; None: that of the images.
        center: what networks see of an image; None: all of it.
    """
    device = images.device if device is None else device
    size = (images.shape[1], images.shape[2]) if center is None else (center.size, center.size)
    order = torch.randperm(len(index), generator=generator(options.seed, "vicinal", "images"))
    index = index[order[: options.batches * options.batch_size]]
    mix = Mix(MixConfig(kind="mixup"), size, num_classes=0)  # it mixes no labels
    parts: dict[tuple[str, str], list[Tensor]] = {}
    partner, share = [], []
    for k, chunk in enumerate(index.split(options.batch_size)):
        at = chunk.to(device)
        pixels = clean(images, at, center)
        mixture = mapped(partial(send, device=device), mix.draw(generator(options.seed, "vicinal", k), len(chunk)))
        views = {"clean": View(pixels, at), "mixed": View(mixture.images(pixels), at)}
        for kind, view in views.items():
            for net, values in predict(view).items():
                parts.setdefault((net, kind), []).append(values.cpu())
        partner.append(mixture.partner.cpu() + k * options.batch_size)
        share.append(mixture.share.cpu())
    logits = {place: torch.cat(answers) for place, answers in parts.items()}
    for net, kind in logits:
        if not logits[net, kind].isfinite().all():
            raise KdrunError(f"{net}: logits on {kind} images that are not finite; nothing can be measured")
    log_p = {place: values.double().log_softmax(1) for place, values in logits.items()}
    answers_of = {net: Answers(log_p[net, "clean"], log_p[net, "mixed"]) for net, kind in parts if kind == "clean"}
    return answers_of, Pairs(target[index], torch.cat(partner), torch.cat(share).double())


def report(options: Options) -> str:
    return "\n\n".join(vicinal(FinishedRun.open(run), options) for run in options.run)


def vicinal(run: FinishedRun, options: Options) -> str:
    """All of it for one run: into `<run>/analysis/vicinal.json`, its figures, and the record's metrics.

    They are `vicinal/<net>/<metric>` of training images, `vicinal_test/...` and so on of others.
    """
    opened = Assembly.restored(run)
    images, index, target = images_of(opened, options.split)
    if not len(index):
        raise KdrunError(f"{run.directory}: has no {options.split} images; choose another split")
    try:
        answers, pairs = ask(opened.predict, images, index, target, options, opened.device, opened.center)
    except KdrunError as error:
        raise KdrunError(f"{run.directory}: {error}") from None
    found = measurements(answers, pairs)
    name = "vicinal" if options.split == "train" else f"vicinal_{options.split}"
    protocol = {**options.model_dump(exclude={"run", "batches"}), "images": len(pairs.share), "of": len(index)}
    protocol["batches"] = -(-len(pairs.share) // options.batch_size)
    numbers = {str(Metric(name, net, key)): v for net, one in found.items() for key, v in one.numbers.items()}
    content = {**protocol, "class_names": opened.arrays.class_names, "nets": {n: _plain(f) for n, f in found.items()}}
    folder = run.directory / "analysis"
    with run.amended() as record:
        write_json(folder / f"{name}.json", finite(content))
        written = draw_linearity(found, folder / f"{name}-linearity")
        written += draw_similarity(found, folder / f"{name}-similarity")
        others = {key: value for key, value in record["metrics"].items() if Metric.parse(key).split != name}
        record["metrics"] = others | finite(numbers)
    files = [folder / f"{name}.json", *written]
    return "\n".join([f"{run.directory}: {_statement(protocol)}", *_rows(found), told(files)])


def images_of(opened: Assembly, split: str) -> tuple[Source, Tensor, Tensor]:
    """Images (M, H, W, C) uint8, which of them make the split (N,), and labels (M,), also those hidden from the run."""
    images, test_images = opened.images
    if split == "test":
        target = torch.from_numpy(opened.arrays.test_labels)
        return test_images, torch.arange(len(target)), target
    target, val = opened.labels, torch.from_numpy(opened.split.val)
    if split == "val":
        return images, val, target
    train = target >= 0  # not those of dataset.unlabeled
    train[val] = False
    return images, train.nonzero().flatten(), target


def draw_linearity(found: Mapping[str, Findings], stem: Path) -> list[Path]:
    """L_NL over lambda, a line for each network."""
    paths = places(stem)
    with drawn(paths, 3.2) as figure:
        [axes] = panels(figure)
        middle = (torch.arange(LAMBDA_BINS) + 0.5) / LAMBDA_BINS
        axes.axvspan(*PEAK, color="#f1f1f1", zorder=0)
        for k, (net, one) in enumerate(found.items()):
            label = f"{net}: mean {one.numbers['linearity']:.3g}, peak {one.numbers['linearity_peak']:.3g}"
            axes.plot(middle.numpy(), one.bins[:, 1].numpy(), color=color(k), marker=marker(k), label=label)
        axes.set(xlabel="λ, share of the first image", ylabel="deviation from linearity, nats", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        legend(figure, "upper")
    return paths


def draw_similarity(found: Mapping[str, Findings], stem: Path) -> list[Path]:
    """Matrices of class similarity: clean, mixed; a row for each network. The diagonal, always 1, is left white."""
    paths = places(stem)
    matrices = {(net, kind): getattr(one, kind).clone() for net, one in found.items() for kind in ("clean", "mixed")}
    for matrix in matrices.values():
        matrix.fill_diagonal_(torch.nan)
    top = max((m[m.isfinite()].max().item() for m in matrices.values() if m.isfinite().any()), default=1.0)
    with drawn(paths, 0.4 + 2.9 * len(found)) as figure:
        grid = panels(figure, len(found), 2)
        shown = None
        for axes, ((net, kind), matrix) in zip(grid, matrices.items(), strict=True):
            axes.grid(False)
            shown = axes.imshow(matrix.numpy(), vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
            alike = f"; r = {found[net].numbers['similarity_correlation']:.2f} to clean" if kind == "mixed" else ""
            axes.set(title=f"{net}, {kind}{alike}", xlabel="class", ylabel="class")
        if shown is not None:
            figure.colorbar(shown, ax=grid, label="cosine of mean probabilities", shrink=0.7)
    return paths


def _entropy(log_p: Tensor) -> float:
    entropy: Tensor = torch.special.entr(log_p.exp()).sum(1)
    return entropy.mean().item()


def _plain(one: Findings) -> dict[str, Any]:
    edges = [k / LAMBDA_BINS for k in range(LAMBDA_BINS + 1)]
    bins = [
        {"from": low, "to": high, "images": int(count), "linearity": mean}
        for low, high, (count, mean) in zip(edges, edges[1:], one.bins.tolist(), strict=False)
    ]
    similarity = {"clean": one.clean.tolist(), "mixed": one.mixed.tolist()}
    return {"metrics": one.numbers, "lambda_bins": bins, "class_similarity": similarity}


def _statement(protocol: Mapping[str, Any]) -> str:
    return (
        f"{protocol['images']} of {protocol['of']} {protocol['split']} images, not augmented, in {protocol['batches']} "
        f"batches of up to {protocol['batch_size']}, lambda ~ U(0, 1) each (the authors': 100 x 256 training images)"
    )


def _rows(found: Mapping[str, Findings]) -> list[str]:
    names = list(dict.fromkeys(metric for one in found.values() for metric in one.numbers))
    wide = max(12, *(len(net) + 2 for net in found))
    rows = [" " * 28 + "".join(f"{net:>{wide}}" for net in found)]
    for name in names:
        cells = (f"{one.numbers[name]:.4f}" if name in one.numbers else "" for one in found.values())
        rows.append(f"{name:<28}" + "".join(f"{cell:>{wide}}" for cell in cells))
    return rows
