"""Short names of runs, from what differs between them."""

from collections.abc import Sequence

from kdrun.config.run import RunConfig


def short_names(configs: Sequence[RunConfig]) -> list[str]:
    """`kd-resnet20-digits-100 s0`: the method or its loss, the first student, the dataset, its labels, the seed."""
    return [_name(config) for config in configs]


def _name(config: RunConfig) -> str:
    net = config.students[0].name if config.students else ""
    words = [config.method.name, net, config.dataset.name, str(config.dataset.num_labels or "")]
    return f"{'-'.join(filter(None, words))} s{config.seed}"
