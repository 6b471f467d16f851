"""Sentences about classes: the templates of CLIP teachers, and captions for training a small CLIP on digits.

The sets named after datasets are those of DHO (Kang et al. 2025, arXiv 2505.07675), which are CoOp's and Tip-Adapter's
single templates; imagenet has the seven of Tip-Adapter.
"""

from collections.abc import Sequence

from kdrun.errors import ConfigError, allowed

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
