"""docs/methods/index.md: every method and loss term of kdrun, its paper, its equation, what it costs and what it needs.

python scripts/methods.py               write the page
python scripts/methods.py check=true    write nothing; exit 1: it is not what classes and costs make by now

Costs are of outputs/published/bench_rivals, where `python -m scripts.bench rivals rounds=3` writes them.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.explain import idea_of
from kdrun.config.compose import Composer
from kdrun.config.needs import Needs, recipe_of
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import registered
from kdrun.training.assembly import Assembly
from scripts.bench.rivals import composed
from scripts.generated import ROOT, table, write_or_check

PAGE = ROOT / "docs" / "methods" / "index.md"
COSTS = ROOT / "outputs" / "published" / "bench_rivals" / "bench.json"
LABELED = 1009  # of the digits: a number that no other tensor's length is
PAIR = ("student=resnet20", "teacher=resnet56")
HEADS = {"method": "Methods", "loss": "Loss terms"}
RATIOS = ("step / ce", "step / kd")
PAGES = {
    "dho": "dho",
    "dual_student": "peer_distill uncertainty_distill",
    "feature_losses": "ab at catkd cc crd diffkd fitnet fsp ickd itrd kdsvd nd nst ofd pkt reviewkd rkd sp srrl vid "
    "vitkd wkd_feature",
    "heads_and_clip": "contrastive dhkd linear_eval simkd sho sskd tip_adapter zero_shot binary_kl",
    "kd_fixmatch": "kd_fixmatch",
    "logit_losses": "distill ctkd cwtm dist dkd dkpp kd mlkd nkd rld wkd_logit",
    "mixup_distill": "mixup_distill linearity",
    "robust_losses": "supervised ce evidential gce mae nce sce",
    "semi_supervised": "adamatch comatch dash fixmatch flexmatch freematch mean_teacher mixmatch peer_fixmatch "
    "pi_model pseudo_label remixmatch simmatch softmatch uda vat",
    "several_teachers": "avgkd byot camkd ebkd",
    "ttm": "ttm wttm",
}
"""Page beside this one -> the methods and terms that it tells of."""

TEXT = """# Methods and loss terms

What `method=<name>` and `loss=<name>` (or `loss/term@loss.<label>=<name>`) can be. Made by `scripts/methods.py`; a test
fails where it is stale. `kdrun explain method=<name> loss=<name>` prints the same of a run, with each key, its value
and where that came from, of files of your own (`plugins=[...]`) too, which are not here.

- **name**: leads to its page: commands, what its paper reports, what was found here, where ours differs.
- **equation**: in the names of keys; p are probabilities, z logits, y the label, s the student, t the teacher, H cross
  entropy.
- **step / ce**, **step / kd**: a step beside one of cross entropy alone with the same student and as many labeled
  images, and beside one with `kd`, which has the same teacher's pass: min / median / max{told}.
  -: not measured.
- **needs**: a teacher ((teacher): one may stand beside), features of the student (of resnet56 -> resnet20), memory (a
  buffer with a row for each image), unlabeled images with their views, several students, a run that is made first.
- **over ranks**: mean: each process computes on its rows, and gradients are averaged; gathered: over the rows of all
  processes; no: refused there.

{tables}
"""


def main(arguments: list[str]) -> int:
    return write_or_check(arguments, lambda: {PAGE: page()}, "scripts/methods.py", PAGE.parents[2])


def page(measured: Path = COSTS) -> str:
    """Of what the package registers, in alphabetical order.

    Args:
        measured: bench.json of the benchmark; absent: no costs.
    """
    bench = json.loads(measured.read_text("utf-8")) if measured.is_file() else {"figures": []}
    costs: dict[tuple[str, str], dict[str, Any]] = {}
    for figure in bench["figures"]:
        costs.setdefault((figure["registry"], figure["case"]), {})[figure["kind"]] = figure
    tables = []
    with Composer() as composer:
        for kind, head in HEADS.items():
            ours = {name: cls for name, cls in registered(kind).items() if cls.__module__.startswith("kdrun.")}
            rows = [row(composer, kind, name, cls, costs.get((kind, name), {})) for name, cls in ours.items()]
            tables.append(f"## {head}\n\n{table(rows)}")
    return TEXT.format(tables="\n\n".join(tables), told=conditions(bench))


def conditions(bench: Mapping[str, Any]) -> str:
    """How costs were measured; nothing where they were not."""
    if not bench["figures"]:
        return ""
    networks = dict.fromkeys(figure["networks"] for figure in bench["figures"])
    machine, rounds = bench["machine"], bench["ran"]["rounds"]
    return f" of {rounds} rounds\n  ({'; '.join(networks)}; threads: {machine['threads']}, {machine['cpu']})"


def row(composer: Composer, kind: str, name: str, cls: Any, cost: Mapping[str, Any]) -> dict[str, str]:
    """Column -> cell."""
    words = (f"{kind}={name}", f"dataset.num_labels={LABELED}", *(PAIR if kind == "loss" else ()))
    _, config = composed(composer, "resnet20", words)
    told, memory = told_of(kind, name, config)
    source = vars(cls).get("source", "")
    year = re.search(r"\b(19|20)\d\d\b", source.partition(";")[0])
    seen = f", {cost['images']['median']:.0f} images" if kind == "method" and cost else ""
    return {
        "name": linked(name),
        "idea": idea_of(cls),
        "year": year[0] if year else "-",
        "paper": re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source) or "-",
        "equation": f"`{vars(cls).get('equation', '').replace('`', '') or '-'}`",
        RATIOS[0]: ratio(cost.get(RATIOS[0])) + seen,
        RATIOS[1]: ratio(cost.get(RATIOS[1])),
        "needs": needed(kind, config, told, memory) or "-",
        "over ranks": told.over_ranks,
    }


def linked(name: str) -> str:
    """A name with its page."""
    page = next((page for page, names in PAGES.items() if name in names.split()), None)
    return f"`{name}`" if page is None else f"[`{name}`]({page}.md)"


def told_of(kind: str, name: str, config: RunConfig) -> tuple[Needs, bool]:
    """What a part needs, and whether it has a row for each image; as it is built, where these networks allow it."""
    label = next((label for label, term in config.losses.items() if term.name == name), name)
    own: Needs = config.needs if kind == "method" else config.term_needs[label]
    try:
        run = Assembly.outline(config)
        part = run.method if kind == "method" else run.method.losses().terms[label]
    except KdrunError:
        return own, own.index
    counts = {len(run.setup.train_target), len(run.split.labeled), len(run.split.unlabeled)}
    memory = any(buffer.ndim and len(buffer) in counts for buffer in part.buffers())
    return own if kind == "method" else part.needed, memory


def needed(kind: str, config: RunConfig, needs: Needs, memory: bool) -> str:
    found = []
    beside = kind == "method" and "teacher" in needs.sides
    if needs.teacher or (beside and config.teacher.kind().present):
        found.append("teacher")
    elif beside:
        found.append("(teacher)")
    if needs.features:
        found.append(f"features {', '.join(needs.features)}")
    if memory:
        found.append("memory")
    if config.views.mix.kind != "none":
        found.append("mixed images")
    if kind == "method":
        if "unlabeled" in needs.streams:
            found.append(f"unlabeled images ({counted(needs.streams['unlabeled'])})")
        if needs.students[0] > 1:
            found.append(f"{needs.students[0]} students or more")
        others = [role for role in config.method_class.requires(config) if not role.startswith("teacher")]
        found += [f"a run ({', '.join(others)})"] if others else []
    return "; ".join(found)


def counted(views: Sequence[str]) -> str:
    """`weak, 2 strong` of weak, strong and strong_2."""
    kinds = Counter(recipe_of(view) for view in views)
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items())


def ratio(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return " / ".join(f"{figure[key]:.3g}" for key in ("min", "median", "max"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
