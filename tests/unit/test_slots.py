"""What a slot says to a run in it."""

import os

import pytest
import torch

from kdrun.core.device import device_of, use_machine
from kdrun.core.slot import WHOLE, Slot, occupied, slot


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("index", "wanted"), [(None, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0"), (5, "cuda:1")]
)
def test_jobs_of_a_launcher_are_spread_over_the_gpus(index, wanted):
    with occupied(Slot(index=index)):
        assert device_of("auto") == torch.device(wanted)
        assert device_of("cuda:1") == torch.device("cuda:1")
        assert device_of("cpu") == torch.device("cpu")


def test_a_slot_gives_threads_where_the_run_does_not(monkeypatch):
    before = torch.get_num_threads()
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with occupied(Slot(threads=3)):
        use_machine("cpu", None)
        use_machine("cpu", "auto")
        use_machine("cpu", 2)
    use_machine("cpu", None)
    use_machine("cpu", "auto")
    assert told == [3, 3, 2, before, before]
    assert slot() == WHOLE


def test_a_slot_shows_its_gpu_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with occupied(Slot(gpu="1")):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
