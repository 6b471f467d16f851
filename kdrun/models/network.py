"""A network with its own input adapter: takes raw pixels, resizes and normalises them, gives logits and features."""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.core.files import write_bytes
from kdrun.core.later import later
from kdrun.core.registry import plugin_hashes
from kdrun.core.schema import build
from kdrun.core.seeding import subseed
from kdrun.data.views.view import View
from kdrun.models.heads import hidden_head
from kdrun.models.interface import last_activations, refuse_logits, refuse_pixels, stage_channels, whole_pass
from kdrun.models.output import Output
from kdrun.models.pretrained import timm_network

if TYPE_CHECKING:
    import timm
else:
    timm = later("timm")

TOKENS = "tokens"
MAP = "map"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again; stands in the header of its weight file."""

    model: dict[str, Any]
    num_classes: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Network(nn.Module):
    """A timm network behind an input adapter.

    Call it with a `View`, or with pixels (B, C, H, W): uint8, or float in [0, 1]. `dims[name]` is the number of
    channels of the feature `name`: `prelogits` (B, D), the input of the last linear layer, `stage1` and so on,
    (B, C, H, W), of a transformer `tokens`, the last of them behind the final norm, and where the head is not linear
    `pooled` (B, D), the input of the head. `map` (B, D, H, W) is what a convolutional network pools for its classifier:
    the last stage, or what follows it. `pre1` and so on are the stages before the activation that ends them, `stem`
    what goes into the first of kdrun's own networks; where there are such. `class_names` are those of the logits, in
    their order, where `kdrun.load` opened it.
    """

    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...] = ()

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        model = ModelConfig.model_validate(spec.model)
        self.size = model.size
        self.net: Any = timm_network(model, spec.num_classes, spec.in_chans)
        shape = (1, spec.in_chans, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(shape), persistent=False)
        self._put_head(model)
        if model.zero_head:
            self._zero_head()
        self.dims = stage_channels(self.net, model.name)
        self._stages = list(self.dims)
        if self._stages and hasattr(self.net, "num_prefix_tokens"):
            self.dims[TOKENS] = self.dims[self._stages[-1]]
        self._whole = whole_pass(self.net)
        classifier = self._classifier()
        self._seen: dict[str, Tensor] | None = None  # where a forward pass keeps what hooks see,
        self._asked: Sequence[str] = ()  # if it was asked for it
        if classifier is not None:
            self.dims["prelogits"] = classifier.in_features
            pooled = self._stages and TOKENS not in self.dims and self._net.get_classifier() is classifier
            if pooled and getattr(self._net, "num_features", None) == classifier.in_features:
                self.dims[MAP] = classifier.in_features
            self._watch("prelogits", classifier)
        head = self._net.get_classifier()
        if isinstance(head, nn.Sequential) and isinstance(head[0], nn.Linear) and classifier is not head[0]:
            self.dims["pooled"] = head[0].in_features
            self._watch("pooled", head)
        if self._stages:
            self._watch_activations(model.name)

    @property
    def _net(self) -> Any:
        return self.net  # timm's interface is beyond nn.Module's

    def _put_head(self, model: ModelConfig) -> None:
        """Put the configured head in the classifier's place, and freeze what is not trained."""
        self._frozen = model.trainable == "head"
        if model.head == "linear" and not self._frozen:
            return
        classifier = self._net.get_classifier()
        place = next((name for name, module in self.net.named_modules() if module is classifier), "")
        if not isinstance(classifier, nn.Linear) or not place:
            raise ConfigError(
                f"{model.name}: its classifier is not one linear layer, so head must be linear and trainable all; see "
                "student.head and student.trainable"
            )
        if model.head != "linear":
            make = mlp_head if model.head == "mlp" else hidden_head
            self.net.set_submodule(place, make(classifier.in_features, classifier.out_features))
        if self._frozen:
            self.net.requires_grad_(False)
            self._net.get_classifier().requires_grad_(True)

    @torch.no_grad()
    def _zero_head(self) -> None:
        """The last layer of each classifier at zero. Raises ConfigError: one has none that could be."""
        found = self._net.get_classifier()
        for head in found if isinstance(found, tuple | list) else [found]:
            last = head[-1] if isinstance(head, nn.Sequential) else head
            if not isinstance(last, nn.Linear | nn.Conv2d):
                raise ConfigError(f"{self.name}: its classifier is no linear layer; set student.zero_head to false")
            for parameter in last.parameters():
                parameter.zero_()

    def train(self, mode: bool = True) -> Self:
        """Training mode; of a network of which only the head is trained, the head's alone."""
        super().train(mode)
        if self._frozen:
            self.net.eval()
            self._net.get_classifier().train(mode)
        return self

    def _classifier(self) -> nn.Linear | None:
        head = self._net.get_classifier()
        classifier = head[-1] if isinstance(head, nn.Sequential) else head
        return classifier if isinstance(classifier, nn.Linear) else None

    @property
    def linear_classifier(self) -> Callable[[Tensor], Tensor] | None:
        """The last linear layer, `prelogits` (B, D) -> logits (B, classes); None: there is no such layer."""
        return None if self.last_layer is None else self.last_layer.forward

    @property
    def last_layer(self) -> nn.Linear | None:
        """The layer of `linear_classifier`: for who copies it."""
        return self._classifier()

    @property
    def reductions(self) -> dict[str, int]:
        """Side of the image over that of each stage's map, where the network tells; none where it resizes the image."""
        if self.size is not None:
            return {}
        told = {f"stage{i + 1}": entry.get("reduction") for i, entry in enumerate(self._net.feature_info or ())}
        return {stage: reduction for stage, reduction in told.items() if isinstance(reduction, int)}

    @property
    def num_heads(self) -> int:
        """Its classifiers: two of a DeiT that was made to be distilled, of which it gives the mean."""
        found = self._net.get_classifier()
        heads = found if isinstance(found, tuple | list) else [found]
        parts = (module for head in heads for module in head.modules())
        return sum(isinstance(part, nn.Linear) and part.out_features == self.spec.num_classes for part in parts)

    @property
    def large_new_head(self) -> float | None:
        """The largest weight of a new classifier that is trained with published weights, where features of size 1 would
        get logits of size 2 or more, .6 with torch's own start (timm's EfficientNets of few classes); else None."""
        model, published = self.spec.model, timm.get_pretrained_cfg(self.name)
        new = model["new_head"] or (published is not None and published.num_classes != self.spec.num_classes)
        last = self._classifier()
        if last is None or not model["pretrained"] or not new or self._frozen:
            return None
        weight = last.weight.detach()
        return float(weight.abs().amax()) if float(weight.square().sum(1).mean().sqrt()) > 2 else None

    @property
    def name(self) -> str:
        return str(self.spec.model["name"])

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    def adapt(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in [0, 1] -> normalised float32 at the network's size."""
        refuse_pixels(pixels)
        if pixels.shape[1] != self.spec.in_chans:
            raise KdrunError(f"{self.name} takes {self.spec.in_chans} channels, got pixels {tuple(pixels.shape)}")
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (x - self.mean) / self.std

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        """Logits, and the features asked for.

        Raises:
            ConfigError: a feature that the network does not have.
            KdrunError: what is no pixels.
        """
        x = self.adapt(view.pixels if isinstance(view, View) else view)
        if not features:
            return Output(self._logits(self.net(x)), {})
        unknown = [name for name in features if name not in self.dims]
        if unknown:
            raise ConfigError(f"{self.name} has no feature {unknown[0]!r}; it has {', '.join(self.dims) or 'none'}")
        out: dict[str, Tensor] = {}
        self._seen, self._asked = out, features
        try:
            logits = self._pass(x, features, out)
        finally:  # a pass that is made again for the backward pass is left before its end
            self._seen, self._asked = None, ()  # what it holds names its teacher's artifacts
        return Output(logits, {name: out[name] for name in features})

    def _pass(self, x: Tensor, features: Sequence[str], out: dict[str, Tensor]) -> Tensor:
        """Logits; stages, tokens and map go into `out`."""
        stages = [name for name in self._stages if name in features]
        if stages or {TOKENS, MAP} & set(features):
            # some of timm's networks give nothing where no stage is asked
            asked = stages if stages and TOKENS not in features else list(dict.fromkeys((*stages, self._stages[-1])))
            places = [self._stages.index(name) for name in asked]
            final, maps = self._net.forward_intermediates(x, indices=places, **self._whole)
            out.update(zip(asked, maps, strict=True))
            if TOKENS in features:  # timm puts class tokens first
                out[TOKENS] = final[:, -maps[-1].shape[2:].numel() :].mT.reshape(maps[-1].shape)
            if MAP in features:
                out[MAP] = final.permute(0, 3, 1, 2) if getattr(self._net, "output_fmt", "") == "NHWC" else final
            return self._logits(self._net.forward_head(final))
        return self._logits(self.net(x))

    def _logits(self, found: Tensor) -> Tensor:
        refuse_logits(found, self.name, self.spec.num_classes)
        return found.float()

    def _watch(self, name: str, module: nn.Module) -> None:
        """Have the input of a module as a feature. Once: torch.compile cannot trace registering."""
        module.register_forward_pre_hook(partial(self._keep, name))

    def _watch_activations(self, name: str) -> None:
        """`pre1` and so on, and `stem`."""
        for feature, (act, _) in last_activations(self._net, name).items():
            self.dims[feature] = self.dims[feature.replace("pre", "stage")]
            self._watch(feature, act)
        if stem := getattr(self._net, "stem_chs", 0):
            self.dims["stem"] = stem
            self._watch("stem", self._net.get_submodule(self._net.feature_info[0]["module"]))

    @property
    def norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """`pre1` and so on -> weight and bias (C,) of the batch normalization that comes last before it."""
        found = last_activations(self._net, self.name) if self._stages else {}
        return {name: (norm.weight, norm.bias) for name, (_, norm) in found.items() if norm is not None}

    def _keep(self, name: str, module: nn.Module, args: tuple[Tensor]) -> None:
        """A hook that belongs to the copy, too, when the network is copied."""
        if self._seen is not None and name in self._asked:
            before: Callable[..., Tensor] | None = getattr(module, "before", None)
            value = args[0] if before is None else before(*args)
            self._seen[name] = value.clone() if getattr(module, "inplace", False) else value

    def load(self, path: Path) -> None:
        """Take the weights of a file that `save` of an equal network wrote."""
        self.net.load_state_dict(load_network(path).net.state_dict())

    def save(self, path: Path) -> None:
        """Write the weights under timm's own names; the header holds the spec, so `load_network` needs nothing else."""
        write_bytes(path, self.saved())

    def saved(self) -> bytes:
        """The content of the file that `save` writes."""
        from safetensors.torch import save

        return save(apart(self.net.state_dict()), metadata={"kdrun": json.dumps(asdict(self.spec))})


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights on the CPU, as safetensors takes them: where two names share memory, each has its own."""
    out: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        out[name] = value.detach().cpu().contiguous()
        place = out[name].untyped_storage().data_ptr()
        if place in taken:
            out[name] = out[name].clone()
        taken.add(place)
    return out


def mlp_head(inputs: int, classes: int) -> nn.Sequential:
    """The head of the students of arXiv 2606.12171, of (B, inputs); initialised as torch does."""
    return nn.Sequential(
        nn.Linear(inputs, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes)
    )


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation takes a batch's statistics as in training, and its running statistics stay as they are."""
    tracking = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    tracking = [module for module in tracking if module.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def build_network(
    model: ModelConfig,
    *,
    num_classes: int,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    role: str = "",
) -> Network:
    """Build a network, its initialisation drawn from (seed, network, role), not from what was built before it."""
    spec = NetworkSpec(model.model_dump(), num_classes, in_chans, tuple(mean), tuple(std))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(seed, "init", model.name, role))
        return Network(spec)


def outline(spec: NetworkSpec) -> Network:
    """A network on the meta device: its shapes, without memory and weights. Built once for all who ask."""
    name = str(spec.model["name"])
    plain = replace(spec, model={**spec.model, "pretrained": False, "file": None})
    parts = plugin_hashes([timm.model_entrypoint(name)] if timm.is_model(name) else [])
    asked = json.dumps(asdict(plain)), tuple(parts)
    kept = _outline(*asked)
    try:
        return copy.deepcopy(kept)
    except Exception as error:  # a user's network may be made of anything
        log.debug("%s cannot be copied (%s); it is built anew", name, error)
        return _outline.__wrapped__(*asked)


@lru_cache(maxsize=8)
def _outline(spec: str, _parts: tuple[tuple[str, str], ...]) -> Network:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Network(NetworkSpec(**json.loads(spec)))


def load_network(path: Path) -> Network:
    """A network from a file that `Network.save` wrote, in eval mode on the CPU."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("kdrun")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise DataError(f"{path}: not written by kdrun (no network description in its header)")
    try:
        content = json.loads(header)
        content["model"]["pretrained"] = False
        spec = NetworkSpec(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})
        build(ModelConfig, spec.model, "model")
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        raise DataError(f"{path}: its network description cannot be read by this kdrun ({error})") from None
    with torch.random.fork_rng(devices=[]):
        network = Network(spec)
    try:
        network.net.load_state_dict(state)
    except RuntimeError as error:
        raise KdrunError(f"{path}: does not fit {network.name}: {str(error).splitlines()[-1].strip()}") from None
    return network.eval()
