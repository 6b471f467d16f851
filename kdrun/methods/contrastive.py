"""Contrastive training of a CLIP on captions (Radford et al. 2021, arXiv 2103.00020).

L = (H(q, softmax(s I T^t)) + H(q, softmax(s T I^t))) / 2 over a batch of image features I and text features T of length
1; q puts an image on its own caption. deviates: the paper's q is the identity, we share it among captions that say the
same, because a batch of few classes holds sentences twice.

The captions are made of words for the class of a labeled image and for how bright its pixels are
(`facts.captions` of the dataset). Evaluation is zero-shot: texts of templates that no caption uses.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.prompts import captions, templates
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.data.views.view import Batch, View
from kdrun.losses.term import Pair
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.class_texts import class_features, class_tokens, class_words
from kdrun.models.network import Network
from kdrun.models.open_clip import open_clip
from kdrun.models.output import Output


class ContrastiveConfig(MethodConfig):
    captions: str | None = None
    """A dataset whose captions are taken, or any, for any class names; null: the dataset's own, else any."""


@register("method", "contrastive")
class Contrastive(Method[ContrastiveConfig]):
    """A CLIP learns which caption belongs to which image."""

    Config = ContrastiveConfig
    equation = (
        "(H(q, softmax(s I T')) + H(q, softmax(s T I'))) / 2, I and T features of images and captions, q shared "
        "among equal captions"
    )
    source = "Radford et al. 2021, arXiv 2103.00020"

    tokens: Tensor
    """(classes, 2, K, length): all captions of a class on dark and on bright images; the rest is 0."""
    count: Tensor
    """(classes, 2): how many they are."""
    held_out: Tensor
    """(classes, templates, length): the texts of the zero-shot classifier."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        words = class_words(setup)
        length = self._net.clip.context_length
        tokenizer = open_clip().SimpleTokenizer(context_length=length)
        sentences = captions(self.spec.captions, config.dataset.name, words)
        most = max(len(said) for one in sentences for said in one)
        with torch.device("cpu"):  # the tokenizer writes numbers, for which meta has no place
            tokens = torch.zeros(len(words), 2, most, length, dtype=torch.int64)
            for k, one in enumerate(sentences):
                for tone, said in enumerate(one):
                    tokens[k, tone, : len(said)] = tokenizer(list(said))
            count = torch.tensor([[len(said) for said in one] for one in sentences])
            held_out = class_tokens(tokenizer, words, templates(None, config.dataset.name))
        device = torch.get_default_device()
        for name, value in {"tokens": tokens, "count": count, "held_out": held_out}.items():
            self.register_buffer(name, value.to(device), persistent=False)

    @property
    def _network(self) -> Network:
        network = self.students["student"]
        if not isinstance(network, Network):
            raise TypeError("student is a Network")
        return network

    @property
    def _net(self) -> Any:
        return self._network.net

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(class_names=True, over_ranks="gathered")

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = [
            f"student.name: method=contrastive trains a CLIP, got {model.name}; choose student=digits_clip or its like"
            for model in config.students
            if model.name != "clip"
        ]
        others = [label for label, term in config.losses.items() if term.name != "ce"]
        errors += [f"loss.{label}: method=contrastive tells captions apart by cross entropy only" for label in others]
        if config.schedule.accumulate > 1:
            errors.append("schedule.accumulate: method=contrastive holds all images of a step together; set it to 1")
        return errors

    def step(self, batch: Batch, ctx: Context) -> Step:
        self._clamp()
        samples = batch["labeled"]
        view = samples.views["weak"]
        if samples.target is None:
            raise TypeError("the labeled stream has labels")
        tokens = self._captions(view, samples.target, ctx)
        image = self._net.image_features(self._network.adapt(view.pixels)).float()
        text = F.normalize(self._net.clip.encode_text(tokens).float(), dim=1)
        # an image is told apart from the captions of all ranks
        image, text, tokens, index = map(world().gathered, (image, text, tokens, view.index))
        logits = self._net.clip.logit_scale.exp() * image @ text.T
        same = (tokens[:, None] == tokens[None]).all(2).float()
        target = same / same.sum(1, keepdim=True)
        losses: dict[str, Tensor] = {}
        for scores in (logits, logits.T):
            pair = Pair(Output(scores, {}), None, target, index, ctx.progress, ctx.draw)
            for label, value in self.losses().target(pair).items():
                losses[label] = losses.get(label, 0) + value / 2
        return Step(losses, {"zeta": (-self._net.clip.logit_scale.detach()).exp()})

    def _captions(self, view: View, target: Tensor, ctx: Context) -> Tensor:
        """(B, length): a caption for each image, drawn from those that fit it."""
        pixels = view.pixels.float() / 255 if view.pixels.dtype == torch.uint8 else view.pixels
        mean = sum(self.setup.mean) / len(self.setup.mean)
        bright = (pixels.mean((1, 2, 3)) > mean).long()
        which = (ctx.draw(len(target)) * self.count[target, bright]).long()
        return self.tokens[target, bright, which]

    @torch.no_grad()
    def _clamp(self) -> None:
        self._net.clip.logit_scale.clamp_(0, math.log(100))  # as the paper

    def predict(self, view: View) -> dict[str, Tensor]:
        self._clamp()
        # by the weights that are in force now: an average of them may have taken their place
        self._net.class_embeddings.copy_(class_features(self._net.clip, self.held_out))
        return super().predict(view)
