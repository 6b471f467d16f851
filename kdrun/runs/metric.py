"""Names of metrics: `split/net/metric`, and which of them are shares."""

PERCENT = (
    "top1", "top5", "ece", "ece_equal_mass", "ece_classwise", "overconfidence", "confidence", "confidence_gap",
    "teacher_agreement", "precision", "coverage", "mask_rate", "pseudo_label_accuracy",
)  # fmt: skip


def is_percent(metric: str) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    return metric.rsplit("/", 1)[-1].removeprefix("scaled_") in PERCENT
