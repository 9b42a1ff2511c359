"""Every registered policy, in a batch of unequal samples: what a sample gets does not depend on its neighbours.

By default in three families with images and two with videos, and each family with a few policies; ``-m slow`` tries
all of them everywhere.
"""

import pytest

from tests.policies.contract import NAMES, VIDEO, families, outcome

USUAL = {"image": ["llava", "llava_next", "qwen2_5_vl"], "video": ["qwen2_5_vl", "llava_onevision"]}
WHOLE = {"kimi_k25": VIDEO, "minicpmv4_6": {"dycoke", "evs"}, "minicpmv4_7": {"dycoke", "evs"}}
"""Clips of one step have nothing that repeats."""

ALL = pytest.mark.slow(reason="every policy in every family; `make test-matrix` runs them")


def cells(kind):
    """Every policy in every family; beside the usual families a diagonal stripe is not slow."""
    found = []
    for i, family in enumerate(families(kind)):
        for j, name in enumerate(NAMES):
            usual = family in USUAL[kind] or (i + j) % 16 == 0
            found.append(pytest.param(family, name, marks=() if usual else ALL, id=f"{family}-{name}"))
    return found


@pytest.mark.parametrize("family, name", cells("image"))
def test_images(family, name):
    """Oracle: every sample alone; unequal numbers of visual tokens and of text."""
    found = outcome(family, "image", name)
    if found.status == "whole":
        assert name in VIDEO and found.notes, "nothing was pruned, and nobody said so"
    assert found.status != "refused" or family not in USUAL["image"], found.notes


@pytest.mark.parametrize("family, name", cells("video"))
def test_videos(family, name):
    """Oracle: every sample alone."""
    found = outcome(family, "video", name)
    if found.status == "whole":
        assert name in WHOLE.get(family, ()) and found.notes, "nothing was pruned"
    assert found.status != "refused" or family not in USUAL["video"], found.notes
