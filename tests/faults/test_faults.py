"""A sample of `make faults`, the same each time: no law is broken."""

import pytest

from tests.faults.harness import SAMPLE, results

pytestmark = [pytest.mark.slow, pytest.mark.faults]
PARTS = 2  # that two workers of pytest share


@pytest.mark.parametrize("part", range(PARTS))
def test_no_law_is_broken(part):
    share = {harness: range(part, count, PARTS) for harness, count in SAMPLE.items()}
    found = list(results([share], seed=0))
    assert len(found) == sum(len(numbers) for numbers in share.values())
    broken = [result.text for result in found if result.verdict.broken]
    assert not broken, "\n".join(broken)
