"""Losses between features of the student and the teacher: AT, RKD, PKT and VID, and what such losses share.

In float32 whatever comes in (float64 stays), gradients to the student only. A stage's feature is a map (B, C, H, W); of
two maps the larger one is average-pooled to the smaller. Constants are those of the CIFAR-100 comparison of Tian et al.
2020 (arXiv 1910.10699), whose code all later tables use; so are the means over elements, which the weights count on.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.term import Pair, Term, TermSpec, teacher_of, width

TINY = 1e-12  # what a norm or a mean distance is at least, where it divides


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of (a_s - a_t)^2, a = v / ||v||, v = mean_c f_c^2 (Zagoruyko and Komodakis 2017, 1612.03928).

    The paper writes the norm of the difference; its code, and all after it, take this mean over the H * W positions.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W').

    Returns:
        (B,).
    """
    student, teacher = same_size(student, teacher)
    return (_attention(student) - _attention(teacher)).square().mean(1)


def _attention(feature: Tensor) -> Tensor:
    return F.normalize(feature.square().mean(1).flatten(1), eps=TINY)


def vid(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """-log N(f_t; mean, variance) without its constant (Ahn et al. 2019, arXiv 1904.05835).

    Mean over channels and positions of ((f_t - mean)^2 / variance + log variance) / 2.

    Args:
        mean: (B, C, H, W), regressed from the student.
        variance: (C,), above 0.
        teacher: (B, C, H, W).

    Returns:
        (B,).
    """
    variance = full(variance)[:, None, None]
    squares = (full(mean) - full(teacher.detach())).square()
    return 0.5 * (squares / variance + variance.log()).flatten(1).mean(1)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of Huber(d_s - d_t) (Park et al. 2019, arXiv 1904.05068).

    d is a pair's distance divided by the mean distance of the pairs that lie apart; the loss's mean is over all B^2.

    Args:
        student: (B, D).
        teacher: (B, D').

    Returns:
        ().
    """
    return F.smooth_l1_loss(_distances(full(student)), _distances(full(teacher.detach())))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over triplets (i, j, k) of Huber(c_s - c_t), c the cosine of the angle at j (Park et al. 2019, 1904.05068).

    Shapes as in `rkd_distance`; the mean is over all B^3. Where j falls on i or k, c is 0. Needs memory for
    B^2 * D + B^3 numbers.
    """
    return F.smooth_l1_loss(_cosines(full(student)), _cosines(full(teacher.detach())))


def _distances(x: Tensor) -> Tensor:
    """(B, D) -> (B, B), divided by the mean of those above 0."""
    # Not by x x^T: near points would lose their distance to rounding.
    distances: Tensor = torch.linalg.vector_norm(x[:, None] - x, dim=2)
    apart = (distances > 0).sum().clamp(min=1)
    return distances / (distances.sum() / apart).clamp(min=TINY)


def _cosines(x: Tensor) -> Tensor:
    """(B, D) -> (B, B, B): at [j, i, k] the cosine between x_i - x_j and x_k - x_j."""
    directions = F.normalize(x - x[:, None], dim=2, eps=TINY)
    return directions @ directions.mT


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over pairs of p_t log((p_t + eps) / (p_s + eps)) (Passalis and Tefas 2018, arXiv 1803.10837).

    p[i, j] is (cos(f_i, f_j) + 1) / 2, divided by the sum of its row; the mean is over all B^2, so it is the mean
    divergence of a row divided by B.

    Args:
        student: (B, D).
        teacher: (B, D').

    Returns:
        ().
    """
    p_s, p_t = _affinities(full(student)), _affinities(full(teacher.detach()))
    return (p_t * ((p_t + eps) / (p_s + eps)).log()).mean()


def _affinities(x: Tensor) -> Tensor:
    x = F.normalize(x, eps=TINY)
    similarity = (x @ x.mT + 1).clamp(min=0) / 2  # rounding may leave a cosine below -1
    return similarity / similarity.sum(1, keepdim=True)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both, by average pooling; the teacher's without gradient."""
    for role, feature in (("student", student), ("teacher", teacher)):
        if feature.ndim != 4:
            raise KdrunError(f"the {role}'s feature of shape {tuple(feature.shape)} is no map (B, C, H, W)")
    return smaller(full(student), full(teacher.detach()))


def smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both, by average pooling."""
    height, breadth = (min(one.shape[i], other.shape[i]) for i in (2, 3))
    return _pooled(one, height, breadth), _pooled(other, height, breadth)


def _pooled(feature: Tensor, height: int, breadth: int) -> Tensor:
    same = feature.shape[2:] == (height, breadth)
    return feature if same else F.adaptive_avg_pool2d(feature, (height, breadth))


class FeatureTerm(Term):
    """A term over pairs of features: the k-th that is needed of the student beside the k-th of the teacher."""

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self.given(pair)
        with full_precision(student[0]):
            return self.value(student, teacher)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The loss, (B,) or ()."""
        raise NotImplementedError

    def given(self, pair: Pair) -> tuple[list[Tensor], list[Tensor]]:
        """The student's features and the teacher's, in float32 or more, the teacher's without gradient."""
        taught = teacher_of(pair, self)
        return (
            [full(pair.student.features[name]) for name in self.needed.features],
            [full(taught.features[name].detach()) for name in self.needed.of_teacher],
        )

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, over_ranks="mean")


class PenultimateTerm(FeatureTerm):
    """A term over the inputs of both classifiers, (B, D) and (B, D')."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.student_dim = width(spec.student_dims, "prelogits", "student")
        self.teacher_dim = width(spec.teacher_dims, "prelogits", "teacher")

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, features=("prelogits",), over_ranks="mean")


class StatisticTerm(PenultimateTerm):
    """A statistic of all samples of a batch, ()."""

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return replace(super().needs(config), over_ranks="gathered", per_sample=False)


Stage = Annotated[str, Field(pattern=r"^stage[1-9][0-9]*$")]


def stages(dims: Mapping[str, int], role: str) -> list[str]:
    """The stages of a network, in its order. Raises ConfigError where it has none."""
    found = [name for name in dims if name.startswith("stage")]
    if not found:
        raise ConfigError(f"the {role} gives no stages; it gives {', '.join(dims) or 'none'}")
    return found


class StagesTerm(FeatureTerm):
    """The sum of a loss over pairs of stages."""

    most: ClassVar[float] = 4
    """As many pairs at most where none are named."""

    class Config(TermConfig):
        features: list[Stage] | None = Field(None, min_length=1)
        """The student's stages; null: the last ones of each network, as many as both have, at most four."""
        # Behind a stem the literature's networks have three or four stages. Its VGG counts the first of five as the
        # stem, timm's networks list the stem as a stage.
        teacher_features: list[Stage] | None = Field(None, min_length=1)
        """The teacher's stages, held against `features` one by one; null: those of the same names."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if config.features is None:
            if config.teacher_features is not None:
                raise ConfigError("teacher_features needs features, the student's stages to hold them against")
            student, teacher = self.maps(spec)
        else:
            student, teacher = config.features, config.teacher_features or config.features
        if len(student) != len(teacher):
            raise ConfigError(f"features names {len(student)} stages, teacher_features {len(teacher)}: they are paired")
        self.pairs = list(zip(student, teacher, strict=True))
        """The stages by their names."""
        mine, others = spec.student_dims, spec.teacher_dims
        student = [self.place(s, mine, "student") for s in student]
        teacher = [self.place(t, others, "teacher") for t in teacher]
        self.needed = replace(self.needed, features=tuple(student), teacher_features=tuple(teacher))
        self.widths = [
            (width(mine, s, "student"), width(others, t, "teacher")) for s, t in zip(student, teacher, strict=True)
        ]

    def maps(self, spec: TermSpec) -> tuple[list[str], list[str]]:
        """The student's and the teacher's stages where none are named."""
        pairs = stages(spec.student_dims, "student"), stages(spec.teacher_dims, "teacher")
        count = int(min(self.most, *map(len, pairs)))
        return pairs[0][-count:], pairs[1][-count:]

    def place(self, stage: str, dims: Mapping[str, int], role: str) -> str:
        """The feature that is looked at of a stage of the network of this role."""
        return stage

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        values = [self.of_stage(k, s, t) for k, (s, t) in enumerate(zip(student, teacher, strict=True))]
        return torch.stack(values).sum(0)

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of the k-th pair, (B,)."""
        raise NotImplementedError


@register("loss", "at")
class AT(StagesTerm):
    """The student's maps are strong where the teacher's are: `at`, summed over stages."""

    equation = (
        "sum over pairs of features and teacher_features of mean (a_s - a_t)^2, a = v / ||v||, v = mean_c f_c^2 at "
        "each position"
    )
    source = "Zagoruyko and Komodakis 2017, arXiv 1612.03928; weight: Tian et al. 2020, arXiv 1910.10699"

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        return at(student, teacher)


@register("loss", "vid")
class VID(StagesTerm):
    """The student's maps tell the teacher's through a Gaussian: `vid`, summed over stages.

    The mean comes from the student's map by three 1x1 convolutions with ReLU between; the variance of each channel is
    softplus of a parameter, and starts at 5.
    """

    equation = (
        "sum over pairs of features and teacher_features of mean ((f_t - m(f_s))^2 / v + log v) / 2, m and the "
        "variance v of each channel learned"
    )
    source = "Ahn et al. 2019, arXiv 1904.05835; weight: Tian et al. 2020, arXiv 1910.10699"
    FLOOR = 1e-5  # of the variance

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.regressors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(s, t, 1, bias=False), nn.ReLU(), nn.Conv2d(t, t, 1, bias=False), nn.ReLU(),
                nn.Conv2d(t, t, 1, bias=False),
            )
            for s, t in self.widths
        )  # fmt: skip
        start = math.log(math.expm1(5.0 - self.FLOOR))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((t,), start)) for _, t in self.widths)

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        mine, other = same_size(student, teacher)
        return vid(self.regressors[k](mine), F.softplus(self.scales[k]) + self.FLOOR, other)


@register("loss", "rkd")
class RKD(StatisticTerm):
    """Distances and angles between images are the teacher's: `rkd_distance` and `rkd_angle`, each with its weight."""

    equation = (
        "distance_weight mean Huber(d_s - d_t) + angle_weight mean Huber(c_s - c_t), d the distances of pairs over "
        "their mean, c the cosines of the angles of triplets"
    )
    source = "Park et al. 2019, arXiv 1904.05068"

    class Config(TermConfig):
        distance_weight: float = Field(25.0, ge=0)
        angle_weight: float = Field(50.0, ge=0)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        config = self.config
        distance, angle = rkd_distance(student[0], teacher[0]), rkd_angle(student[0], teacher[0])
        return torch.as_tensor(config.distance_weight * distance + config.angle_weight * angle)


@register("loss", "pkt")
class PKT(StatisticTerm):
    """Images are as alike to the student, as shares of a batch, as they are to the teacher: `pkt`."""

    equation = "mean over pairs of p_t log(p_t / p_s), p = (cosine + 1) / 2 over the sum of its row"
    source = "Passalis and Tefas 2018, arXiv 1803.10837; weight: Tian et al. 2020, arXiv 1910.10699"

    class Config(TermConfig):
        pass

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return pkt(student[0], teacher[0])
