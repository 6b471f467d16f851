"""Configs parsed once compose to what Hydra makes of them, and follow their files."""

import os
from contextlib import suppress

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.types import RunMode
from omegaconf import OmegaConf

from kdrun.config.compose import REFUSALS, Composer
from kdrun.config.nodes import to_config
from kdrun.core.errors import ConfigError
from tests.processes import Forked

PICKS = (
    ["loss=wttm", "seed=3"],
    ["experiment=ttm/resnet56_resnet20", "loss=wttm"],
    ["method=dho", "~loss.ce"],
    [],
    ["loss.kd.weight=2", "method=mixup_distill", "+ramps.a={key: loss.kd.weight, end: 0}", "loss.kd.weight=3"],
    [
        "students=[resnet8,resnet14]",
        "~ramps",
        "++schedule={lr: 0.2}",
        "experiment=dual_student/digits",
        "schedule.lr=${seed}",
    ],
    ["loss=[kd_noce]", "+loss/term@loss.more=wttm", "+settings.kd={a: 1}"],
    ["hydra.verbose=true", "hydra/job_logging=default", "seed=1"],
)
WRONG = (
    ["seed=0,1"], ["loss=nope"], ["schedule.lrr=1"], ["+seed=1"], ["~nope"], ["schedule@x=demo"], ["loss=null"], ["a b"],
    ["hydra.searchpath=1"], ["seed=${nope"], ["schedule.decay.name=[1"],
)  # fmt: skip


def plain_of(composer: Composer) -> ConfigLoaderImpl:
    """Hydra's own loader, with its own repository."""
    plain = ConfigLoaderImpl(composer.loader.get_search_path())
    plain.repository = ConfigRepository(composer.loader.get_search_path())
    return plain


def nodes(node, key=""):
    """What a node is, and those below it."""
    about = node._metadata
    yield key, type(node), about.object_type, about.ref_type, about.optional, dict(about.flags or {})
    content = node.__dict__.get("_content")
    for name, item in (
        content.items() if isinstance(content, dict) else enumerate(content or ()) if isinstance(content, list) else ()
    ):
        assert item._get_parent() is node
        yield from nodes(item, f"{key}.{name}")


def test_a_composition_is_hydra_s_own_and_leaves_nothing_behind_for_the_next():
    with Composer() as composer:
        plain = plain_of(composer)
        for _ in range(2):
            for words in PICKS:
                ours = composer.loader.load_configuration("config", words, RunMode.RUN, from_shell=False)
                theirs = plain.load_configuration("config", words, RunMode.RUN, from_shell=False)
                assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs), words
                assert sorted(map(str, nodes(ours))) == sorted(map(str, nodes(theirs))), words
                files = plain.compute_defaults_list("config", words, RunMode.RUN).defaults
                assert composer.loader.files("config", words) == files
                with suppress(ConfigError):
                    to_config(ours)  # takes Hydra's node out for a while
                OmegaConf.update(ours, "schedule.lr", 7)
        assert len(composer.loader._known) == len(PICKS) - 1  # each but Hydra's own words has been taken that way


def test_what_hydra_refuses_is_refused_in_its_words():
    def refusal(loader: ConfigLoaderImpl, words: list[str]) -> str | None:
        try:
            loader.load_configuration("config", words, RunMode.RUN, from_shell=False)
        except REFUSALS as error:
            return f"{type(error)}: {error}"
        return None

    with Composer() as composer:
        plain = plain_of(composer)
        for words in WRONG:
            theirs = refusal(plain, words)
            assert theirs is not None, words
            assert refusal(composer.loader, words) == theirs


def test_a_file_that_changes_is_parsed_again_and_one_that_goes_is_missed(tmp_path):
    assert Forked(change_and_move, tmp_path).wait(120) == 0


def change_and_move(tmp_path) -> int:
    path = tmp_path / "schedule" / "mine.yaml"
    path.parent.mkdir()
    with Composer(str(tmp_path)) as composer:
        for lr in (0.1, 0.2):
            path.write_text(f"defaults: [base, _self_]\nsteps: 1\nlr: {lr}\n")
            os.utime(path, ns=(0, int(1e9 * lr)))
            assert composer.compose(["schedule=mine"]).schedule.lr == lr
    other = tmp_path / "other"
    other.mkdir()
    path.rename(other / "mine.yaml")
    with Composer(str(tmp_path)) as composer:
        assert "mine" not in composer.hydra.config_loader.get_group_options("schedule")
    return 0
