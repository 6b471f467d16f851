"""Each number of conf/paper stands beside a row of ours, or the file says why none can."""

import pytest

from kdrun.core.paths import CONF_DIR
from tests.config.papers import faults, tables_beside

PAPERS = sorted((CONF_DIR / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_number_is_beside_a_row_that_is_run_or_says_why_not(path):
    assert faults(path, tables_beside(path.stem)) == []
