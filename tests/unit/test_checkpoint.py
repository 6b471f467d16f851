"""Checkpoints: one of the two states is whole at any time, and none that is not whole is gone on from."""

import pytest
import torch

from kdrun.core.errors import KdrunError
from kdrun.training import checkpoint
from kdrun.training.checkpoint import Checkpoint, random_state, set_random_state
from tests.damage import DAMAGE, flipped, truncated

CPU = torch.device("cpu")


def kept(tmp_path, count=2):
    place = Checkpoint(tmp_path / "checkpoint", "key")
    for step in range(1, count + 1):
        place.save({"step": step, "weights": torch.arange(100.0) * step})
    return place


def loaded(place):
    """The steps that were offered, and what was wrong."""
    steps = []
    return steps, place.load(lambda state: steps.append(state["step"]))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_last_state_comes_back(tmp_path, count):
    place = kept(tmp_path, count)
    assert loaded(place) == (([count], None) if count else ([], []))


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_the_last_one_is_damaged_the_previous_one_is_taken_and_kept(tmp_path, caplog, damage):
    place = kept(tmp_path)
    damage(place.last)
    previous = place.previous.read_bytes()
    assert loaded(place) == ([1], None)
    if damage.__name__ != "deleted":
        [line] = caplog.messages
        assert line.startswith(f"{place.last} is damaged (")
        assert line.endswith("; going on from previous.pt")
    assert not place.last.exists()  # or it would take the place of the one that is whole
    assert place.previous.read_bytes() == previous
    place.save({"step": 3})
    assert loaded(place)[0] == [3]


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_a_flip_in_the_header_is_seen_too(tmp_path, at):
    place = kept(tmp_path)
    content = bytearray(place.last.read_bytes())
    content[at] ^= 2
    place.last.write_bytes(content)
    assert loaded(place) == ([1], None)


def test_where_both_are_damaged_it_is_an_error_with_the_remedy(tmp_path):
    place = kept(tmp_path)
    flipped(place.last)
    truncated(place.previous)
    steps, errors = loaded(place)
    assert (steps, len(errors)) == ([], 2)
    assert str(place.damage(errors)) == (
        f"{place.last}: damaged checkpoint (ValueError: its sha256 differs); delete {place.folder} to start this run anew"
    )


def test_one_that_cannot_be_restored_falls_back_too(tmp_path, caplog):
    place, steps = kept(tmp_path), []

    def restore(state):
        steps.append(state["step"])
        if state["step"] == 2:
            raise KeyError("optimizer")

    assert place.load(restore) is None
    assert steps == [2, 1]
    assert "is damaged (KeyError); going on from previous.pt" in caplog.text


def test_memory_that_is_short_is_no_damage(tmp_path):
    place = kept(tmp_path)
    with pytest.raises(MemoryError):
        place.load(lambda state: bytearray(1 << 62))
    assert place.last.exists()


def test_one_of_another_run_is_refused(tmp_path):
    place = kept(tmp_path)
    with pytest.raises(KdrunError, match=r"last\.pt: belongs to run key, not other; delete"):
        loaded(Checkpoint(place.folder, "other"))


def test_one_from_before_there_were_checksums_is_read(tmp_path):
    place = kept(tmp_path, 0)
    place.folder.mkdir()
    torch.save({"key": "key", "step": 7}, place.last)
    assert loaded(place) == ([7], None)


def test_random_numbers_go_on_where_they_were():
    state = random_state(CPU)
    first = torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)
    assert "cuda" not in state


@pytest.mark.parametrize(
    ("kept", "device", "taken"),
    [
        ([0, 1, 2, 3], "cuda:1", 1),  # as it was written for all GPUs
        ([0, 1, 2, 3], "cuda", 0),
        ([0], "cuda:1", 0),  # written where there was one
        (5, "cuda:1", 5),  # as it is written now
    ],
)
def test_the_state_of_the_runs_own_gpu_is_set_whatever_others_there_were(monkeypatch, kept, device, taken):
    given, place = [], torch.device(device)
    monkeypatch.setattr(checkpoint.torch.cuda, "set_rng_state", lambda *args: given.append(args))
    states = [torch.tensor([k]) for k in kept] if isinstance(kept, list) else torch.tensor([kept])
    set_random_state({**random_state(CPU), "cuda": states}, place)
    assert given == [(torch.tensor([taken]), place)]
