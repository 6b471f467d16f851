"""Semi-supervised knowledge distillation (SSKD: He et al. 2021, arXiv 2108.05045): a rival in DHO's tables.

Labeled images teach the student's own classifier, by the terms against the labels and by those against the teacher;
unlabeled ones, whose distribution may be another, teach a second head, by the terms against the teacher. Both heads
read the same features; the classifier alone predicts. It was made for person re-identification; DHO's paper (arXiv
2505.07675, section A and table 1) compares with this SSKD ("each head trained on labeled and unlabeled sets", "only
h_CE" at inference), not with self-supervision's (arXiv 2006.07114).

deviates: the authors' heads are cosines, with a triplet loss beside, and both networks have learned from the labels
before; here heads are linear and begin as DHO's do, because its paper states nothing else.
"""

from collections.abc import Callable

from torch import Tensor, nn

from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.methods.sho import SHOConfig
from kdrun.methods.step import Context
from kdrun.methods.two_heads import TwoHeads
from kdrun.models.output import Output


@register("method", "sskd")
class SSKD(TwoHeads[SHOConfig]):
    """Labeled images teach the classifier, unlabeled ones a second head, which is thrown away."""

    equation = (
        "labeled: terms against labels and teacher with the classifier; unlabeled: terms against the teacher with a "
        "second head"
    )
    source = "He et al. 2021, arXiv 2108.05045"

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = super().contradictions(config)
        if not cls.spec_of(config).unlabeled_ratio:
            errors.append(
                "method.unlabeled_ratio: 0, but the second head of method=sskd learns from unlabeled images alone; "
                "choose method=sho"
            )
        return errors

    def second_head(self, dim: int) -> tuple[str, Callable[[], nn.Module]]:
        return "linear", lambda: nn.Linear(dim, self.setup.num_classes)

    def heads(self, out: Output, ctx: Context | None = None) -> tuple[Tensor, Tensor]:
        return out.logits, self.kd_head(out.features[self.shared]).float()

    def heads_of_labeled(self, out: Output, ctx: Context) -> tuple[Tensor, Tensor]:
        return out.logits, out.logits
