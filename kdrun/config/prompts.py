"""Sentences about classes: the templates of CLIP teachers, and captions for training a small CLIP on digits.

The sets named after datasets are those of DHO (Kang et al. 2025, arXiv 2505.07675), which are CoOp's and Tip-Adapter's
single templates; imagenet has the seven of Tip-Adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kdrun.core.errors import ConfigError, allowed

DEFAULT = ["a photo of a {}."]
TEMPLATES: dict[str, list[str]] = {
    "imagenet": [
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ],
    "caltech101": DEFAULT,
    "stanford_cars": DEFAULT,
    "sun397": DEFAULT,
    "dtd": ["{} texture."],
    "eurosat": ["a centered satellite photo of {}."],
    "fgvc_aircraft": ["a photo of a {}, a type of aircraft."],
    "food101": ["a photo of {}, a type of food."],
    "oxford_pets": ["a photo of a {}, a type of pet."],
    "flowers102": ["a photo of a {}, a type of flower."],
    "ucf101": ["a photo of a person doing {}."],
    # ours: none of them is among the captions below
    "digits": ["a photo of the number {}.", "the figure {} on paper.", "somebody wrote {} here."],
}


def templates(given: Sequence[str] | str | None, dataset: str) -> list[str]:
    """The templates that `teacher.prompts` means for a dataset. Raises ConfigError for the name of no set."""
    if given is None:
        return TEMPLATES.get(dataset, DEFAULT)
    if isinstance(given, str):
        if given not in TEMPLATES:
            raise ConfigError(f"teacher.prompts: no set of templates {given!r}; {allowed(given, TEMPLATES)}")
        return TEMPLATES[given]
    return list(given)


@dataclass(frozen=True)
class Captions:
    """What may be said of an image. Ours."""

    templates: tuple[str, ...]
    """{word} is the class, {tone} how bright the image is."""
    tones: tuple[tuple[str, ...], tuple[str, ...]]
    """Words for images darker and brighter than the mean of the dataset."""
    words: tuple[tuple[str, ...], ...] = ()
    """Words for each class; empty: the names of the classes."""


CAPTIONS = {
    "any": Captions(
        (
            "a photo of a {word}",
            "a {tone} photo of a {word}",
            "a picture of a {word}",
            "a {tone} picture showing a {word}",
        ),
        (("dark", "dim"), ("bright", "light")),
    ),
    "digits": Captions(
        (
            "{word}",
            "a {word}",
            "the digit {word}",
            "a handwritten {word}",
            "a {tone} {word}",
            "a {word} in {tone} strokes",
            "the digit {word} written with a {tone} pen",
            "a small image of a {tone} handwritten {word}",
        ),
        (("thin", "fine", "light"), ("thick", "bold", "heavy")),
        (
            ("0", "zero", "nought"),
            ("1", "one", "ace"),
            ("2", "two", "deuce"),
            ("3", "three", "trey"),
            ("4", "four", "quad"),
            ("5", "five", "quint"),
            ("6", "six", "half dozen"),
            ("7", "seven", "septet"),
            ("8", "eight", "octet"),
            ("9", "nine", "nonet"),
        ),
    ),
}


def captions(given: str | None, dataset: str, names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """For each class the captions of its darker images and of its brighter ones, none twice.

    Args:
        given: `method.captions`, the name of a set; None: the dataset's, else "any".
        names: of the classes, for a set without words of its own.
    """
    name = given or (dataset if dataset in CAPTIONS else "any")
    if name not in CAPTIONS:
        raise ConfigError(f"method.captions: no set of captions {name!r}; {allowed(name, CAPTIONS)}")
    chosen = CAPTIONS[name]
    words = chosen.words or tuple((one,) for one in names)
    if len(words) != len(names):
        raise ConfigError(f"method.captions: {name} has words for {len(words)} classes, the dataset has {len(names)}")

    def said(own: Sequence[str], tones: Sequence[str]) -> list[str]:
        every = (t.format(word=word, tone=tone) for t in chosen.templates for word in own for tone in tones)
        return list(dict.fromkeys(every))

    return [(said(own, chosen.tones[0]), said(own, chosen.tones[1])) for own in words]
