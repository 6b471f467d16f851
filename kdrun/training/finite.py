"""What is not finite is a failure: weights that are given, what networks say of an image, and the figures of a run."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from kdrun.core.device import eager
from kdrun.core.errors import DataError, NonFiniteLoss
from kdrun.data.views.view import View, clean_batches
from kdrun.methods.step import Step
from kdrun.models.weights import odd_value
from kdrun.training.assembly import Assembly

REMEDY = "lower schedule.lr or set schedule.clip_norm"
IMAGES = 8  # that a given network is asked about before a step is made


def refuse_given_networks(assembly: Assembly) -> None:
    """Refuse a teacher, and students with weights of their own, that are not finite before anything is trained.

    Raises:
        DataError: names the network, and the tensor or the layer.
    """
    teacher, config = assembly.teacher, assembly.config
    given: dict[str, nn.Module] = {} if teacher is None else {"teacher": teacher.network}
    students = zip(assembly.method.networks().items(), config.students, strict=False)
    given |= {name: net for (name, net), model in students if model.pretrained or model.head_warmup is not None}
    for name, key, odd in _odd_weights(given):
        raise DataError(f"{name}: its weights are not finite: {key} {odd}; give other weights")
    index = torch.arange(min(IMAGES, len(assembly.images[0])), device=assembly.device)
    for name, network in given.items():
        layer = _first_odd_layer(network, assembly, index)
        if layer is not None:
            raise DataError(
                f"{name}: what it says of an image is not finite, from its layer {layer} on; give other weights"
            )


def _first_odd_layer(network: nn.Module, assembly: Assembly, index: Tensor) -> str | None:
    """The first layer of an evaluated network whose output is not finite; None: there is none. No generator moves."""
    odd: list[str] = []

    def look(name: str) -> None:
        def hook(module: nn.Module, given: object, out: object) -> None:
            if not odd and isinstance(out, Tensor) and out.is_floating_point() and not out.isfinite().all():
                odd.append(name)

        hooks.append(network.get_submodule(name).register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    training = network.training
    device = assembly.device
    try:
        for name, module in network.named_modules():
            if not list(module.children()):
                look(name)
        network.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), eager():
            for chunk, pixels in clean_batches(assembly.images[0], index, len(index), assembly.center):
                logits = network(View(pixels, chunk)).logits
                if not odd and (logits.isnan() | logits.isposinf()).any():  # log-probabilities may be -inf
                    odd.append("output")
    finally:
        network.train(training)
        for handle in hooks:
            handle.remove()
    return odd[0] if odd else None


def checked_first(method: nn.Module, take: Callable[[], Step], again: Callable[[], Step]) -> Step:
    """The first step of a run. Where it is not finite, no learning rate is to blame yet, and the loss is named.

    Args:
        take: makes the step.
        again: computes its losses once more.

    Raises:
        NonFiniteLoss: names the loss.
    """
    before = {name: value.clone() for name, value in method.state_dict().items()}
    out = take()
    for name, loss in out.losses.items():
        if not loss.isfinite():
            told = f"step 0: loss term {name!r} is {loss.item():g} before anything was learned"
            raise NonFiniteLoss(f"{told}: look at the term, and at what it is given")
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if torch.stack([parameter.isfinite().all() for parameter in trained]).all():
        return out
    method.load_state_dict(before)
    for name, loss in again().losses.items():
        if not loss.requires_grad:
            continue
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        if any(gradient is not None and not gradient.isfinite().all() for gradient in gradients):
            told = f"step 0: the gradient of loss term {name!r} is not finite, though its value is {loss.item():.4g}"
            raise NonFiniteLoss(f"{told}: a root, a norm or a logarithm at 0 has none; see docs/extend/loss.md")
    raise NonFiniteLoss(f"step 0 left weights that are not finite; {REMEDY}")


def refuse_networks(networks: Mapping[str, nn.Module], step: int) -> None:
    """Raises NonFiniteLoss where training has left a weight that is not finite; names it."""
    for name, key, odd in _odd_weights(networks):
        raise NonFiniteLoss(f"after step {step}: {key} of {name} {odd}; {REMEDY}")


def _odd_weights(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, str]]:
    """(network, tensor, what of it is not finite)."""
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            if (odd := odd_value(key, value)) is not None:
                yield name, key, odd


def refuse_metrics(metrics: Mapping[str, float | None], step: int) -> None:
    """Raises NonFiniteLoss for a figure that is NaN or infinite; what is not defined is None, or not there."""
    for name, value in metrics.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteLoss(f"after step {step}: {name} is {value:g}; {REMEDY}")
