"""The page that says where each policy is defined is of today's policies and families."""

import re

import pytest

from tests.policies.contract import NAMES, families
from tests.policies.defined import KINDS, PAGE, page, run

AGAIN = "write it anew: python -m tests.policies.defined"


def test_every_policy_and_every_family_is_there():
    """Oracle: the registry and the tiny models."""
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == NAMES, AGAIN
    table, _, end = text.partition("The families:")
    for kind in KINDS:
        [listed] = re.findall(rf"^\* {kind}: ([^*]+)", end, re.M)
        assert re.findall(r"`(\w+)`", listed) == families(kind), AGAIN
    used = {int(number) for found in re.findall(r"[ |]\(([\d, ]+)\)", table) for number in found.split(",")}
    assert used == {int(number) for number in re.findall(r"^(\d+)\. ", table, re.M)} == set(range(1, len(used) + 1))


@pytest.mark.slow(reason="runs every policy on every tiny model; `make test-matrix` runs it")
def test_it_is_what_a_run_gives():
    """Oracle: the run itself; what is written was not edited by hand."""
    assert PAGE.read_text(encoding="utf-8") == page(run()), AGAIN
