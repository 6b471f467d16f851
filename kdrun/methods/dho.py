"""Two heads on the same features, one for labels and one for a teacher (DHO: Kang et al. 2025, arXiv 2505.07675).

h_CE(z) = W_CE z + b, h_KD(z) = W_KD z + b; the losses are those of `kdrun.methods.sho`, terms against the labels on
h_CE, the student's own classifier, and terms against the teacher on h_KD; in the paper 0.5 CE + 0.5 KL, temperature 2.
Inference: p = alpha softmax(h_CE) + (1 - alpha) softmax(h_KD / beta).
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.model import ModelConfig
from kdrun.config.prompts import templates
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.core.seeding import subseed
from kdrun.data.views.view import Predictor, View
from kdrun.losses.term import width
from kdrun.methods.sho import FEATURE, SHO, SHOConfig
from kdrun.methods.step import Setup
from kdrun.models.heads import make_head
from kdrun.models.output import Output

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class DHOConfig(SHOConfig):
    kd_head: Literal["linear", "mlp", "cosine"] = "linear"
    """cosine: cos(z, w_c) / zeta, the paper's aligned head; mlp: one hidden layer as wide as the features."""
    zeta: Positive = 0.01
    """Temperature of the cosine head."""
    language_aware_init: Literal["none", "ce", "both"] = "none"
    """Which heads start from embeddings of the class names, of length 1 (Eq. 10; the authors' code leaves them as long
    as they are), biases 0."""
    text_encoder: Literal["auto", "teacher", "student"] = "auto"
    """Whose embeddings: the student's own where it is a CLIP, else the teacher's (auto)."""
    combination: Literal["search", "fixed", "entropy"] = "search"
    """search: alpha and beta are chosen on the validation images, at each evaluation; fixed: they are those below;
    entropy: alpha = e^-H(p_CE) / (e^-H(p_CE) + e^-H(p_KD)), image by image, and beta is that below."""
    ce_share: Share = 0.4
    """alpha."""
    kd_head_temperature: Positive = 0.5
    """beta."""
    ce_shares: list[Share] = Field(default_factory=lambda: [k / 20 for k in range(21)], min_length=1)
    """What alpha is searched in."""
    kd_head_temperatures: list[Positive] = Field(
        default_factory=lambda: [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0], min_length=1
    )
    """What beta is searched in."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.kd_head == "mlp" and self.language_aware_init == "both":
            raise ValueError("language_aware_init: an mlp head has no weight for each class; set it to ce or none")
        return self


@register("method", "dho")
class DHO(SHO):
    ce_share: Tensor
    """() alpha in force."""
    kd_head_temperature: Tensor
    """() beta in force."""
    alone: ClassVar = {"ce_head": "student"}

    class Config(DHOConfig):
        pass

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec: DHOConfig = config.method  # type: ignore[assignment]
        dim = width(self.networks()["student"].dims, self.shared, "student")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(config.seed, "init", "kd_head", spec.kd_head))
            self.kd_head = make_head(spec.kd_head, dim, setup.num_classes, spec.zeta)
        if spec.language_aware_init != "none":
            classifier: Any = self.networks()["student"].net.get_classifier()
            self._start_from_names(dim, [classifier, *([self.kd_head] if spec.language_aware_init == "both" else [])])
        self.register_buffer("ce_share", torch.tensor(spec.ce_share))
        self.register_buffer("kd_head_temperature", torch.tensor(spec.kd_head_temperature))

    @classmethod
    def reopened(cls, config: RunConfig) -> RunConfig:
        config = super().reopened(config)
        return config.replace(method=config.method.replace(language_aware_init="none"))

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = super().contradictions(config)
        if "target" not in config.sides:
            errors.append("loss: method=dho needs a term against the labels; add one, or choose method=sho")
        spec: DHOConfig = config.method  # type: ignore[assignment]
        if spec.language_aware_init == "none" or len(config.students) != 1:
            return errors
        student = config.students[0]
        if student.head != "linear":
            errors.append(
                f"method.language_aware_init: an {student.head} head has no weight for each class; set it to none, or "
                "student.head to linear"
            )
        if spec.text_encoder == "student" and student.name != "open_clip":
            errors.append(
                f"method.text_encoder: student, but {student.name} has none; take student=open_clip, or set it to auto"
            )
        if _own_texts(spec, student) and not student.pretrained:
            errors.append(
                "method.text_encoder: the student's has learned nothing; set student.pretrained=true, or it to teacher"
            )
        return errors

    @classmethod
    def needs_validation(cls, config: RunConfig) -> str | None:
        search = config.method.combination == "search"  # type: ignore[attr-defined]
        return "method.combination: search needs" if search else None

    @property
    def headline(self) -> str:
        return "combined"

    @property
    def shared(self) -> str:
        """What both heads read: the student's features before its classifier, of whatever layers that is made."""
        return "pooled" if "pooled" in self.networks()["student"].dims else FEATURE

    def parts(self, student: str) -> list[nn.Module]:
        return [*super().parts(student), self.kd_head]

    def heads(self, out: Output) -> tuple[Tensor, Tensor]:
        return out.logits, self.kd_head(out.features[self.shared]).float()

    def predictors(self) -> dict[str, Predictor]:
        """Each head, and both together as `combined`."""
        seen: list[Any] = []

        def heads(view: View) -> tuple[Tensor, Tensor]:
            if not seen or seen[0] is not view:  # each predictor asks for both, and the student runs once
                seen[:] = [view, self.heads(self.students["student"](view, (self.shared,)))]
            both: tuple[Tensor, Tensor] = seen[1]
            return both

        return {
            "ce_head": lambda view: heads(view)[0],
            "kd_head": lambda view: heads(view)[1],
            "combined": lambda view: self.combined(*heads(view)),
        }

    @torch.no_grad()
    def _start_from_names(self, dim: int, heads: Iterable[Any]) -> None:
        """Give heads the embeddings of the class names as weights."""
        key, setup, student = "method.language_aware_init", self.setup, self.config.students[0]
        if _own_texts(self.config.method, student):  # type: ignore[arg-type]
            from kdrun.models.class_texts import class_words, student_texts

            words = class_words(setup)
            if not student.pretrained:  # built to be checked, or to be given weights
                return
            prompts = next((kind.prompts for kind in self.config.teacher.kinds if kind.prompts is not None), None)
            outputs = Path(self.config.execution.outputs).expanduser()
            embeddings: Tensor | None = student_texts(
                student, words, templates(prompts, self.config.dataset.name), outputs
            )
        else:
            embeddings = setup.teacher.class_embeddings if setup.teacher is not None else None
        if embeddings is None:
            raise ConfigError(
                f"{key}: the teacher has no text encoder for the class names; set it to none, or take a CLIP"
            )
        if embeddings.shape[1] != dim:
            raise ConfigError(
                f"{key}: the teacher's embeddings have {embeddings.shape[1]} dimensions, the student's features {dim}; "
                "set it to none, or take a student as wide, or a CLIP"
            )
        for head in heads:
            head.weight.copy_(embeddings)
            if getattr(head, "bias", None) is not None:
                head.bias.zero_()

    def combined(self, ce_logits: Tensor, kd_logits: Tensor) -> Tensor:
        """Log-probabilities (B, C) with the alpha and beta in force."""
        by_entropy = self.config.method.combination == "entropy"  # type: ignore[attr-defined]
        return combine(ce_logits, kd_logits, None if by_entropy else self.ce_share, self.kd_head_temperature)

    def settle(self, logits: dict[tuple[str, str], Tensor], val_target: Tensor | None) -> dict[tuple[str, str], Tensor]:
        spec: DHOConfig = self.config.method  # type: ignore[assignment]
        if spec.combination != "search" or val_target is None:
            return logits
        heads = logits["val", "ce_head"], logits["val", "kd_head"]
        share, temperature = best_combination(*heads, val_target, spec.ce_shares, spec.kd_head_temperatures)
        self.ce_share.fill_(share)
        self.kd_head_temperature.fill_(temperature)
        splits = {split for split, _ in logits}
        again = {(s, "combined"): self.combined(logits[s, "ce_head"], logits[s, "kd_head"]) for s in splits}
        return {key: again.get(key, values) for key, values in logits.items()}

    def fix(self) -> None:
        spec: DHOConfig = self.config.method  # type: ignore[assignment]
        if spec.combination != "search":
            self.ce_share.fill_(spec.ce_share)
            self.kd_head_temperature.fill_(spec.kd_head_temperature)

    def choices(self) -> dict[str, float]:
        if self.config.method.combination != "search":  # type: ignore[attr-defined]
            return {}
        names = ("ce_share", "kd_head_temperature")
        return {f"val/combined/{name}": round(getattr(self, name).item(), 6) for name in names}


def combine(ce_logits: Tensor, kd_logits: Tensor, share: Tensor | None, temperature: Tensor) -> Tensor:
    """log(alpha softmax(h_CE) + (1 - alpha) softmax(h_KD / beta)).

    Args:
        ce_logits: (B, C).
        kd_logits: (B, C).
        share: () alpha; None: e^-H(p_CE) / (e^-H(p_CE) + e^-H(p_KD)) of each image.
        temperature: () beta.

    Returns:
        (B, C) log-probabilities.
    """
    ce, kd = ce_logits.log_softmax(1), (kd_logits / temperature).log_softmax(1)
    if share is None:
        odds = (ce.exp() * ce - kd.exp() * kd).sum(1, keepdim=True)  # H(p_KD) - H(p_CE)
        return torch.logaddexp(F.logsigmoid(odds) + ce, F.logsigmoid(-odds) + kd)
    return torch.logaddexp(share.log() + ce, torch.log1p(-share) + kd)


def best_combination(
    ce_logits: Tensor, kd_logits: Tensor, target: Tensor, shares: Iterable[float], temperatures: Iterable[float]
) -> tuple[float, float]:
    """alpha and beta of the highest accuracy; of several, those of the lowest NLL (ours: that is not in the paper)."""
    grid = list(product(shares, temperatures))
    found = []
    for share, temperature in grid:
        logs = combine(ce_logits, kd_logits, ce_logits.new_tensor(share), ce_logits.new_tensor(temperature))
        right = (logs.argmax(1) == target).sum().float()
        found.append(torch.stack([right, F.nll_loss(logs, target)]))
    values = torch.stack(found).tolist()
    return max(zip(grid, values, strict=True), key=lambda item: (item[1][0], -item[1][1]))[0]


def _own_texts(spec: DHOConfig, student: ModelConfig) -> bool:
    """Whether heads start from the student's own embeddings of the class names."""
    return student.name == "open_clip" and spec.text_encoder != "teacher"
