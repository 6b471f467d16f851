"""Short names of runs, from what differs between them; and what two configurations differ in."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdrun.config.key import seedless_key
from kdrun.config.run import RunConfig
from kdrun.config.values import leaves
from kdrun.core.schema import OutsideKey, marker

ASKED = "train"  # the role of a run that no other one asks for
PLAIN = "distill"  # the method of which the loss tells all
LONGEST = 40  # characters of a value


def short_names(configs: Sequence[RunConfig], roles: Sequence[str] | None = None) -> list[str]:
    """One name for each run, no two alike: `kd-resnet20-digits-100 s0`, `teacher resnet20-digits s0`.

    What it is (a method, a loss, or what another run calls it), the first student, the dataset, its labels; the seed
    comes last. Runs that would be called alike have the keys that tell them apart, and where none does, a number.

    Args:
        roles: what another run calls each; `train`: it was asked for.
    """
    names = _bases(configs, roles or [ASKED] * len(configs))
    alike: dict[tuple[str, int], list[int]] = {}
    for k, config in enumerate(configs):
        alike.setdefault((names[k], config.seed), []).append(k)
    for members in alike.values():
        if len(members) > 1:
            for k, keys in zip(members, telling_words([_flat(configs[k]) for k in members]), strict=True):
                names[k] = " ".join([names[k], *keys])
    count = Counter[tuple[str, int]]()
    for k, config in enumerate(configs):
        count[names[k], config.seed] += 1
        again = count[names[k], config.seed]
        names[k] = f"{names[k]}{f' #{again}' if again > 1 else ''} s{config.seed}"
    return names


def kind_of(name: str) -> str:
    """A short name without its seed: what runs that differ in nothing else share."""
    return re.sub(r" s\d+$", "", name)


def group_name(config: RunConfig) -> str:
    """`kd-resnet20-digits-100-3fa2c1`: one for all runs that differ in nothing but the seed, and no other."""
    return f"{kind_of(short_names([config])[0])}-{seedless_key(config)[:6]}"


def seed_of(name: str) -> str:
    """`s0`: what a short name ends with."""
    return name[len(kind_of(name)) :].lstrip()


def telling_terms(labels: Iterable[str]) -> list[str]:
    """The loss terms that tell runs apart: cross entropy is in most of them."""
    every = list(labels)
    return [label for label in every if label != "ce"] or every


def differing_keys(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all of them have with the same value."""
    keys = {key for flat in flats for key in flat}
    return sorted(key for key in keys if len({json.dumps(flat.get(key)) for flat in flats}) > 1)


def telling_words(flats: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each `lr=0.1` and more, as few keys as tell them apart; names of networks and parts before values."""
    differing = differing_keys(flats)
    short = _shortened(differing, {key for flat in flats for key in flat})
    out: list[list[str]] = [[] for _ in flats]
    parts = [0] * len(flats)
    for key in sorted(differing, key=lambda key: (not key.endswith(".name"), key.startswith("teacher."))):
        known: dict[tuple[int, str], int] = {}
        values = [json.dumps(flat.get(key)) for flat in flats]
        finer = [known.setdefault(pair, len(known)) for pair in zip(parts, values, strict=True)]
        if len(known) > len(set(parts)):
            parts = finer
            for words, flat in zip(out, flats, strict=True):
                if key in flat:
                    words.append(f"{short[key]}={_value(flat[key])}")
    return out


# --------------------------------------------------------------------------------------------------------- private


def _bases(configs: Sequence[RunConfig], roles: Sequence[str]) -> list[str]:
    """Names without what only runs that are called alike need. A method's losses are told where they differ."""
    sets: dict[str, dict[str, set[tuple[str, ...]]]] = {}
    for config, role in zip(configs, roles, strict=True):
        if role == ASKED:
            losses = sets.setdefault(config.method.name, {})
            losses.setdefault("+".join(telling_terms(config.losses)), set()).add(tuple(config.losses))
    out = []
    for config, role in zip(configs, roles, strict=True):
        net = config.students[0].name if config.students else ""
        words = [net, config.dataset.name, str(config.dataset.num_labels or "")]
        if role == ASKED:
            method, losses = config.method.name, sets[config.method.name]
            short = "+".join(telling_terms(config.losses))
            loss = short if len(losses[short]) == 1 else "+".join(config.losses)
            told = loss if len(losses) > 1 or len(losses[short]) > 1 or method == PLAIN else ""
            words = [method if method != PLAIN or not told else "", told, *words]
        text = "-".join(filter(None, words))
        out.append(text if role == ASKED else f"{role} {text}")
    return out


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, of all that can change a result."""
    outside = {name for name, field in RunConfig.model_fields.items() if marker(field, OutsideKey)}
    node = config.model_dump(mode="json", exclude=outside)
    return dict(leaves({"loss" if name == "losses" else name: value for name, value in node.items()}))


def _shortened(keys: Sequence[str], every: Iterable[str]) -> dict[str, str]:
    """`schedule.lr` -> `lr`: the least of each key that no other ends with; what is the teacher's says so."""
    ends = Counter(end for key in every for end in _ends(key.removesuffix(".name")))
    return {
        key: short if (short := key.removesuffix(".name")).startswith("teacher.")
        else next((end for end in _ends(short) if ends[end] == 1 and not end[0].isdigit()), short)
        for key in keys
    }  # fmt: skip


def _ends(key: str) -> list[str]:
    """`a.b.c` -> `c`, `b.c`, `a.b.c`."""
    parts = key.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"
