"""The fuzz targets on some mutations; more with ``--long N``."""

import pytest
from run import TARGETS, fuzz


@pytest.mark.parametrize(("target", "number"), [("container", 600), ("audio", 60)])
def test_mutations(target: str, number: int, pytestconfig: pytest.Config) -> None:
    assert target in TARGETS and fuzz(target, 0, number * pytestconfig.getoption("long")) > 0
