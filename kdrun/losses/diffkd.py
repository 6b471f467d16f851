"""DiffKD: the student's features, freed of noise by a diffusion model of the teacher's (Huang et al. 2023)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.core.seeding import normal
from kdrun.losses.diffusion import STEPS, Denoiser, NoiseAdapter, denoised, kept_shares, noisy, times
from kdrun.losses.features import same_size
from kdrun.losses.labels import full
from kdrun.losses.logits import kl
from kdrun.losses.term import Pair, Term, TermSpec, teacher_of, width
from kdrun.models.network import MAP


class Site(nn.Module):
    """The networks of one feature.

    Args:
        inputs: channels of the student's feature.
        outputs: those of the teacher's.
        latent: channels that the teacher's is brought to by an autoencoder; None: it stays as it is.
        spatial: of maps; else of vectors as (B, C, 1, 1).
    """

    kept: Tensor

    def __init__(self, inputs: int, outputs: int, latent: int | None, spatial: bool, steps: int) -> None:
        super().__init__()
        channels = latent or outputs
        self.times = times(steps)
        self.encoder = nn.Sequential(nn.Conv2d(outputs, channels, 1), nn.BatchNorm2d(channels)) if latent else None
        self.decoder = nn.Conv2d(channels, outputs, 1) if latent else None
        self.inward = nn.Conv2d(inputs, channels, 1)
        self.adapter = NoiseAdapter(channels, spatial)
        self.denoiser = Denoiser(channels, spatial)
        self.outward = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.register_buffer("kept", kept_shares(), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, pair: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The student's feature without noise and the teacher's, both in the latent space and of one shape; the losses
        (B,) of the denoiser and of the autoencoder, None where there is none."""
        student, teacher = (x.to(self.inward.weight.dtype) for x in (student, teacher))
        rebuilt = None
        if self.encoder is not None and self.decoder is not None:
            target, latent = teacher, self.encoder(teacher)
            rebuilt = (self.decoder(latent) - target).square().flatten(1).mean(1)
            teacher = latent.detach()
        x = self.inward(student)
        share = self.adapter(x)[:, None, None, None]
        x = share * x + (1 - share) * self._noise(x, pair)
        found = self.outward(denoised(x, self.denoiser, self.kept, self.times))
        noise, time = self._noise(teacher, pair), (pair.draw(len(teacher)) * STEPS).long()
        wrong = self.denoiser(noisy(teacher, noise, self.kept[time]), time) - noise
        return found, teacher, wrong.square().flatten(1).mean(1), rebuilt

    def _noise(self, like: Tensor, pair: Pair) -> Tensor:
        return normal(pair.draw(*like.shape)).to(like.dtype)


@register("loss", "diffkd")
class DiffKD(Term):
    """The distances of denoised maps and logits from the teacher's, and what its denoisers and autoencoder learn from.

    Each site keeps the activations of steps + 1 passes of its denoiser for the backward pass: with 5 steps 64 times its
    latent feature, 146 times the logits; 140 MB for 64 maps of 128 latent channels of 8x8, and 100 classes. Noise of
    twice the size of these is drawn in a step.
    """

    equation = (
        "map_weight mean (d(f_s) - e(f_t))^2 + logits_weight KL(p_t || softmax(d(z_s))) + ddim_weight mean (n - n')^2 "
        "of each + reconstruction_weight mean (f_t - g(e(f_t)))^2, d the denoising in so many steps, n' the "
        "noise n that is found in e(f_t) or z_t, e and g learned, e of latent channels"
    )
    source = "Huang et al. 2023, arXiv 2305.15712"

    class Config(TermConfig):
        map_weight: float = Field(1.0, ge=0)
        """On the squares between the maps that are pooled for the classifiers; 0: without maps."""
        logits_weight: float = Field(1.0, ge=0)
        """On the divergence of logits; 0: without them."""
        ddim_weight: float = Field(1.0, gt=0)
        reconstruction_weight: float = Field(1.0, gt=0)
        steps: int = Field(5, ge=1, le=STEPS // 2)
        latent: int | None = Field(None, ge=1)
        """Channels of the map's autoencoder; null: half the teacher's, as in the authors' library."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.sites = nn.ModuleDict()
        if config.map_weight:
            inputs, outputs = width(spec.student_dims, MAP, "student"), width(spec.teacher_dims, MAP, "teacher")
            latent = config.latent or max(1, outputs // 2)
            self.sites["map"] = Site(inputs, outputs, latent, True, config.steps)
        if config.logits_weight:
            self.sites["logits"] = Site(spec.num_classes, spec.num_classes, None, False, config.steps)
        if not self.sites:
            raise ConfigError(
                "diffkd has nothing to match: map_weight and logits_weight are 0; give one of them a weight"
            )

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, features=(MAP,) if config.map_weight else (), over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        config, taught, values = self.config, teacher_of(pair, self), []
        with full_precision(pair.student.logits):
            if "map" in self.sites:
                student, teacher = same_size(pair.student.features[MAP], taught.features[MAP])
                found, target, *rest = self.sites["map"](student, teacher, pair)
                values.append(config.map_weight * (found - target).square().flatten(1).mean(1) + self._own(*rest))
            if "logits" in self.sites:
                student, teacher = full(pair.student.logits), full(taught.logits.detach())
                found, _, *rest = self.sites["logits"](student[:, :, None, None], teacher[:, :, None, None], pair)
                values.append(config.logits_weight * kl(teacher, found.flatten(1)) + self._own(*rest))
        return torch.stack(values).sum(0)

    def _own(self, wrong: Tensor, rebuilt: Tensor | None) -> Tensor:
        """What the networks of a site learn from."""
        own: Tensor = self.config.ddim_weight * wrong
        return own if rebuilt is None else own + self.config.reconstruction_weight * rebuilt
