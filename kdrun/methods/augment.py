"""What a run learns for its views: how far CTAugment (Berthelot et al. 2020, arXiv 1911.09785) may go.

After each step the networks predict labeled images with drawn magnitudes; a magnitude that leaves the label as it is
gains. FixMatch's code asks the averaged weights, in the same step, before or after the update: which, it leaves open.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdrun.core.device import send
from kdrun.core.world import world
from kdrun.data.views.ctaugment import fresh_rates, learned
from kdrun.data.views.view import Batch, Samples, View


class Augment(nn.Module):
    """The rates of CTAugment's magnitudes, one for each bin; part of the checkpoint."""

    rates: Tensor

    def __init__(self, threshold: float, decay: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.decay = decay
        self.register_buffer("rates", fresh_rates())

    def augmented(self, batch: Batch) -> Batch:
        """The batch, what its views wait for done, but for probes."""
        return {
            name: replace(samples, views={key: self._augmented(view) for key, view in samples.views.items()})
            for name, samples in batch.items()
        }

    def _augmented(self, view: View) -> View:
        policy = view.policy
        if policy is None or policy.probe:
            return view
        pixels = policy.applied(view.pixels, policy.levels(self.rates, self.threshold, self.decay))
        return replace(view, pixels=pixels, policy=None)

    def learn(self, labeled: Samples, networks: Iterable[nn.Module]) -> None:
        """From the view `probe`: rates move by how well the networks' probabilities, on average, match the labels."""
        view, target = labeled.views["probe"], labeled.target
        policy = view.policy
        if policy is None or target is None:
            return
        levels = policy.levels(self.rates, self.threshold, self.decay)
        shown = replace(view, pixels=policy.applied(view.pixels, levels), policy=None)
        right = [net(shown).logits.float().softmax(1).gather(1, target[:, None])[:, 0] for net in networks]
        # 1 - |p - onehot| / 2 is the probability of the label
        op, here = send(policy.params.op, self.rates.device), world()
        match = here.gathered(torch.stack(right).mean(0))  # one view after the other, in the order of the batch
        self.rates.copy_(learned(self.rates, here.gathered(op), here.gathered(levels), match, self.decay))
