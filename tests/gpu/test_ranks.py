"""The twins over NCCL of tests/contract/test_ranks.py: a device for each process, torch's synchronised batch norm."""

import pytest
import torch

from tests.contract.test_ranks import AGAIN, CASES, asked, compare, configs
from tests.each import each
from tests.ranks import over

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a CUDA device for each of two processes"),
]


@pytest.fixture(scope="module")
def cases():
    return configs()


@pytest.fixture(scope="module")
def of_two(cases, tmp_path_factory):
    return over(2, tmp_path_factory.mktemp("two"), asked, cases, backend="nccl", seconds=900)


@pytest.fixture(scope="module")
def alone(cases):
    return asked({name: config for name, config in cases.items() if CASES[name].alike})


@each("name", [name for name, case in CASES.items() if case.alike])
def test_a_step_over_two_devices_has_the_losses_and_gradients_of_one_process(name, of_two, alone):
    compare(of_two[0][name], alone[name], max(CASES[name].near, 1e-4))  # which is on the CPU


@each("name", CASES)
def test_devices_stay_bitwise_equal(name, of_two):
    states = [rank[name]["states"] for rank in of_two]
    assert states[0][0][1] == states[1][0][1]
    assert len(states[0]) == 1 + (name in AGAIN)
