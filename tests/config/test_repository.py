"""Configs parsed once compose to what Hydra makes of them, and follow their files."""

import os

from hydra._internal.config_repository import ConfigRepository
from omegaconf import OmegaConf

from kdrun.config.compose import Composer
from tests.processes import Forked

PICKS = (["loss=wttm", "seed=3"], ["experiment=ttm/resnet56_resnet20", "loss=wttm"], ["method=dho", "~loss.ce"], [])


def test_a_composition_is_hydra_s_own_and_leaves_nothing_behind_for_the_next():
    def composed(composer: Composer) -> list[object]:
        return [OmegaConf.to_container(composer.compose(pick), resolve=False) for pick in PICKS]

    with Composer() as composer:
        first, second = composed(composer), composed(composer)
        loader = composer.hydra.config_loader
        loader.repository = ConfigRepository(loader.get_search_path())
        assert first == second == composed(composer)


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
