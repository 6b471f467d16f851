"""A network with its own input adapter: takes raw pixels, resizes and normalises them, gives logits and features."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config import ModelConfig
from kdrun.data.views import View
from kdrun.errors import ConfigError, DataError, KdrunError
from kdrun.schema import build
from kdrun.seeding import subseed


@dataclass(frozen=True)
class Output:
    """What a network gives for a batch."""

    logits: Tensor
    """(B, classes) float32."""
    features: dict[str, Tensor]
    """The features that were asked for."""

    def detach(self) -> "Output":
        return Output(self.logits.detach(), {name: value.detach() for name, value in self.features.items()})


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
    channels of the feature `name`: `prelogits` (B, D), the input of the classifier, or `stage1` ... (B, C, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        import timm

        super().__init__()
        self.spec = spec
        model = ModelConfig.model_validate(spec.model)
        self.size = model.size
        weights: dict[str, Any] = {"pretrained": model.pretrained}
        if model.pretrained and model.file is not None:
            weights["pretrained_cfg_overlay"] = {"file": model.file}
        try:
            self.net: Any = timm.create_model(
                model.name, num_classes=spec.num_classes, in_chans=spec.in_chans, **weights, **model.args
            )
        except Exception as error:  # hubs raise many kinds
            if model.pretrained:
                raise DataError(_no_weights(model, error)) from error
            if not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
                raise
            raise ConfigError(f"{model.name}: the network cannot be built with args {model.args}: {error}") from error

        shape = (1, spec.in_chans, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(shape), persistent=False)
        self._stages = [f"stage{i + 1}" for i in range(len(getattr(self.net, "feature_info", [])))]
        info = list(getattr(self.net, "feature_info", []))
        self.dims: dict[str, int] = {
            name: int(entry["num_chs"]) for name, entry in zip(self._stages, info, strict=True)
        }
        classifier = self._classifier()
        self._seen: dict[str, Tensor] | None = None  # where a forward pass that was asked for prelogits keeps them
        if classifier is not None:
            self.dims["prelogits"] = classifier.in_features
            classifier.register_forward_pre_hook(self._keep_prelogits)  # once: torch.compile cannot trace registering

    @property
    def _net(self) -> Any:
        return self.net  # timm's interface is beyond nn.Module's

    def _classifier(self) -> nn.Linear | None:
        classifier = self._net.get_classifier()
        return classifier if isinstance(classifier, nn.Linear) else None

    @property
    def name(self) -> str:
        return str(self.spec.model["name"])

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    def adapt(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in [0, 1] -> normalised float32 at the network's size."""
        if pixels.shape[1] != self.spec.in_chans:
            raise KdrunError(f"{self.name} takes {self.spec.in_chans} channels, got pixels {tuple(pixels.shape)}")
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (x - self.mean) / self.std

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        """Logits, and the features asked for. Raises ConfigError for a feature that the network does not have."""
        x = self.adapt(view.pixels if isinstance(view, View) else view)
        if not features:
            return Output(self.net(x).float(), {})
        unknown = [name for name in features if name not in self.dims]
        if unknown:
            raise ConfigError(f"{self.name} has no feature {unknown[0]!r}; it has {', '.join(self.dims) or 'none'}")
        out: dict[str, Tensor] = {}
        stages = [name for name in self._stages if name in features]
        self._seen = out if "prelogits" in features else None
        if stages:
            final, maps = self._net.forward_intermediates(x, indices=[self._stages.index(name) for name in stages])
            out.update(zip(stages, maps, strict=True))
            logits = self._net.forward_head(final)
        else:
            logits = self.net(x)
        self._seen = None
        return Output(logits.float(), out)

    def _keep_prelogits(self, _: nn.Module, args: tuple[Tensor]) -> None:
        if self._seen is not None:
            self._seen["prelogits"] = args[0]

    def save(self, path: Path) -> None:
        """Write the weights under timm's own names; the header holds the spec, so `load_network` needs nothing else."""
        from safetensors.torch import save

        from kdrun.files import write_bytes

        state = {name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}
        write_bytes(path, save(state, metadata={"kdrun": json.dumps(asdict(self.spec))}))


def _no_weights(model: ModelConfig, error: Exception) -> str:
    import timm

    published = timm.get_pretrained_cfg(model.name)
    place = None if published is None else published.hf_hub_id or published.url
    source = f"published as {place}" if place else "no published weights are known"
    line = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    given = f"from {model.file} " if model.file else ""
    return (
        f"{model.name}: weights {given}cannot be loaded ({type(error).__name__}: {line}); {source}: fetch them "
        "where there is a network and name the file (student.file or teacher.model.file), or set pretrained=false"
    )


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
