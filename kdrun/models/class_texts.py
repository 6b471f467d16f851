"""The classes as texts: their names in templates, through the text encoder of a CLIP."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from kdrun.config.model import ModelConfig
from kdrun.core.artifacts import Artifact
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.files import write_bytes
from kdrun.models.factory import NetworkFactory
from kdrun.models.open_clip import Asked, Tokenizer, find_clip, open_clip
from kdrun.models.weights import read_state

VERSION = 1  # raise it when the text features of the same words change: it is part of the artifact's name


def student_texts(model: ModelConfig, words: list[str], prompts: list[str], outputs: Path | None) -> Tensor:
    """The text features of the classes (C, D), from the text encoder beside a student's image encoder."""
    found = find_clip(Asked.by_student(model))
    return text_features(lambda: found.filled(True).eval(), found.tokenizer(), words, prompts, found.identity, outputs)


def class_words(factory: NetworkFactory) -> list[str]:
    """The names of the classes. Raises ConfigError where one is missing or no word."""
    if len(factory.class_names) != factory.num_classes or not all(name.strip() for name in factory.class_names):
        absent = [str(k) for k, name in enumerate(factory.class_names) if not name.strip()]
        raise ConfigError(
            f"dataset.class_names: no name for class {', '.join(absent) or f'0 to {factory.num_classes - 1}'}, and a "
            "teacher that reads names needs all; give a list, or a text file with one a line"
        )
    if all(re.fullmatch(r"n\d{8}", name) for name in factory.class_names):  # folders of ImageNet and its parts
        return _words_of_imagenet(factory.class_names)
    return list(factory.class_names)


def _words_of_imagenet(wnids: Sequence[str]) -> list[str]:
    """OpenAI's names for classes of ImageNet-1k."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    place = {info.index_to_label_name(k): k for k in range(info.num_classes())}
    if strange := [wnid for wnid in wnids if wnid not in place]:
        raise ConfigError(
            f"dataset.class_names: the classes are WordNet's numbers, e.g. {strange[0]}, which is none of ImageNet's "
            "1000, and a teacher that reads names needs words; give a list, or a text file with one a line"
        )
    names: Sequence[str] = open_clip().IMAGENET_CLASSNAMES
    return [names[place[wnid]] for wnid in wnids]


def text_features(
    make: Callable[[], Any], tokenizer: Tokenizer, words: list[str], prompts: list[str], identity: dict[str, Any],
    outputs: Path | None,
) -> Tensor:  # fmt: skip
    """The text features of the classes (C, D) of length 1, from outputs/artifacts/text_features if they are there.

    Args:
        make: gives the CLIP, if it is needed.
        identity: what tells these weights from others.
    """

    def features() -> Tensor:
        net = make()
        return class_features(net, class_tokens(tokenizer, words, prompts).to(net.logit_scale.device))

    if outputs is None:
        return features()
    spec = {"version": VERSION, **identity, "prompts": prompts, "class_names": words}

    def build(folder: Path) -> dict[str, Any]:
        write_bytes(folder / "features.safetensors", save({"class_embeddings": features()}))
        return {}

    def read(folder: Path, _: dict[str, Any]) -> Tensor:
        found = read_state(folder / "features.safetensors", str(folder / "features.safetensors"))
        if "class_embeddings" not in found or len(found["class_embeddings"]) != len(words):
            raise DataError(f"{folder}: does not hold the features of {len(words)} classes")
        return found["class_embeddings"].clone()  # not a view into a file that others may replace

    return Artifact.of(outputs, "text_features", spec).value(build, read)


def class_tokens(tokenizer: Tokenizer, words: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """(C, templates, length) int64: every class name in every template."""
    return torch.stack([tokenizer([prompt.format(word) for prompt in prompts]) for word in words])


@torch.no_grad()
def class_features(net: Any, tokens: Tensor) -> Tensor:
    """(C, D) float32: of each class the mean over templates of text features of length 1, of length 1 itself.

    Args:
        tokens: (C, templates, length).
    """
    texts = [F.normalize(net.encode_text(of_class).float(), dim=1) for of_class in tokens]
    return torch.stack([F.normalize(text.mean(0), dim=0) for text in texts])
