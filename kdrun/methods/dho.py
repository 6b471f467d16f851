"""Two heads on the same features, one for labels and one for a teacher (DHO: Kang et al. 2025, arXiv 2505.07675).

h_CE(z) = W_CE z + b, h_KD(z) = W_KD z + b; the losses are those of `kdrun.methods.sho`, terms against the labels on
h_CE, the student's own classifier, and terms against the teacher on h_KD; in the paper 0.5 CE + 0.5 KL, temperature 2.
Inference: p = alpha softmax(h_CE) + (1 - alpha) softmax(h_KD / beta), alpha and beta of the highest accuracy on the
validation images; of several, those of the lowest NLL (ours: that is not in the paper).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.model import ModelConfig
from kdrun.config.needs import Needs
from kdrun.config.prompts import templates
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.core.seeding import subseed
from kdrun.data.views.view import View
from kdrun.losses.term import width
from kdrun.methods.choice import Choice, Inputs
from kdrun.methods.sho import FEATURE, SHO, SHOConfig
from kdrun.methods.step import Setup
from kdrun.models.class_texts import class_words, student_texts
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
class DHO(SHO[DHOConfig]):
    Config = DHOConfig
    alone = MappingProxyType({"ce_head": "student"})

    ce_share: Tensor
    """() alpha in force."""
    kd_head_temperature: Tensor
    """() beta in force."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec = self.spec
        dim = width(self.networks()["student"].dims, self.shared, "student")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(config.seed, "init", "kd_head", spec.kd_head))
            self.kd_head = make_head(spec.kd_head, dim, setup.num_classes, spec.zeta)
        if spec.language_aware_init != "none" and not setup.restoring:
            classifier: Any = self.networks()["student"].net.get_classifier()
            self._start_from_names(dim, [classifier, *([self.kd_head] if spec.language_aware_init == "both" else [])])
        chosen = spec.combination == "search"  # else a finished run has those of its configuration, not of its file
        self.register_buffer("ce_share", torch.tensor(spec.ce_share), persistent=chosen)
        self.register_buffer("kd_head_temperature", torch.tensor(spec.kd_head_temperature), persistent=chosen)

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        searches = cls.spec_of(config).combination == "search"
        return replace(super().needs(config), validation="method.combination: search needs" if searches else None)

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = super().contradictions(config)
        if "target" not in config.sides:
            errors.append("loss: method=dho needs a term against the labels; add one, or choose method=sho")
        spec = cls.spec_of(config)
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

    def predict(self, view: View) -> dict[str, Tensor]:
        """Each head, and both together as `combined`."""
        return self._combined(self._heads(view))

    def choice(self) -> Choice | None:
        if self.spec.combination != "search":
            return None
        values = {"ce_share": self.ce_share, "kd_head_temperature": self.kd_head_temperature}
        return Choice(
            net="combined", values=values, inputs=self._heads, candidates=self._candidates, apply=self._combined
        )

    def _heads(self, view: View) -> dict[str, Tensor]:
        both = self.heads(self.students["student"](view, (self.shared,)))
        return dict(zip(("ce_head", "kd_head"), both, strict=True))

    def _combined(self, heads: Inputs) -> dict[str, Tensor]:
        """Log-probabilities (M, C) with the alpha and beta in force."""
        share = None if self.spec.combination == "entropy" else self.ce_share
        return {**heads, "combined": combine(heads["ce_head"], heads["kd_head"], share, self.kd_head_temperature)}

    def _candidates(self, heads: Inputs) -> Iterator[tuple[tuple[float, ...], Tensor]]:
        ce, kd = heads["ce_head"], heads["kd_head"]
        for share, temperature in product(self.spec.ce_shares, self.spec.kd_head_temperatures):
            yield (share, temperature), combine(ce, kd, ce.new_tensor(share), ce.new_tensor(temperature))

    @torch.no_grad()
    def _start_from_names(self, dim: int, heads: Iterable[Any]) -> None:
        """Give heads the embeddings of the class names as weights."""
        key, setup, student = "method.language_aware_init", self.setup, self.config.students[0]
        if _own_texts(self.spec, student):
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


def _own_texts(spec: DHOConfig, student: ModelConfig) -> bool:
    """Whether heads start from the student's own embeddings of the class names."""
    return student.name == "open_clip" and spec.text_encoder != "teacher"
