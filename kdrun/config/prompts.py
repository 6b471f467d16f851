"""Sentences about classes: the templates of CLIP teachers, and captions for training a small CLIP.

A dataset's own stand among the `facts` of its class and are known by its name. The templates are those of DHO (Kang et
al. 2025, arXiv 2505.07675), which are CoOp's and Tip-Adapter's; imagenet has the seven of Tip-Adapter.
"""

from collections.abc import Sequence

from kdrun.config.dataset import PHOTO, Captions, facts_of
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.registry import registered

# For any class names. Ours.
ANY = Captions(
    templates=(
        "a photo of a {word}",
        "a {tone} photo of a {word}",
        "a picture of a {word}",
        "a {tone} picture showing a {word}",
    ),
    tones=(("dark", "dim"), ("bright", "light")),
)


def templates(given: Sequence[str] | str | None, dataset: str) -> list[str]:
    """The templates that `teacher.prompts` means for a dataset. Raises ConfigError for the name of no set."""
    if given is None:
        return list(facts_of(dataset).prompts or PHOTO)
    if isinstance(given, str):
        sets = {name: prompts for name in registered("dataset") if (prompts := facts_of(name).prompts)}
        if given not in sets:
            raise ConfigError(f"teacher.prompts: no set of templates {given!r}{allowed(given, sets)}")
        return list(sets[given])
    return list(given)


def captions(given: str | None, dataset: str, names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """For each class the captions of its darker images and of its brighter ones, none twice.

    Args:
        given: `method.captions`, the name of a set; None: the dataset's, else "any".
        names: of the classes, for a set without words of its own.
    """
    sets = {name: own for name in registered("dataset") if (own := facts_of(name).captions)} | {"any": ANY}
    name = given or (dataset if dataset in sets else "any")
    if name not in sets:
        raise ConfigError(f"method.captions: no set of captions {name!r}{allowed(name, sets)}")
    chosen = sets[name]
    words = chosen.words or tuple((one,) for one in names)
    if len(words) != len(names):
        raise ConfigError(f"method.captions: {name} has words for {len(words)} classes, the dataset has {len(names)}")

    def said(own: Sequence[str], tones: Sequence[str]) -> list[str]:
        every = (t.format(word=word, tone=tone) for t in chosen.templates for word in own for tone in tones)
        return list(dict.fromkeys(every))

    return [(said(own, chosen.tones[0]), said(own, chosen.tones[1])) for own in words]
