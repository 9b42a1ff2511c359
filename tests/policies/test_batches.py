"""Every registered policy, in a batch of unequal samples: what a sample gets does not depend on its neighbours."""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from vtprune.policies.base import POLICIES

# towers of the tiny models have three layers, decoders four; policies not named here are as without options
OPTIONS = {
    "vtc_cls": {"layers": (-2,)},
    "hired": {"layers": (0, 1)},
    "hiprune": {"alpha": 1.0},
}
RATIOS = {"dycoke": 0.6, "framefusion": 0.6}
VIDEO = {"dycoke", "evs", "fastvid", "flashvid", "holitom", "llava_scissor", "prunevid", "sttm", "vidcom2"}
"""Policies that keep images whole, or nearly so."""

IMAGE_FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
VIDEO_FAMILIES = ["qwen2_5_vl", "llava_onevision"]


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


def assert_alone_as_in_a_batch(family, name, samples):
    counts = []

    def run(inputs):
        options = {"keep_ratio": RATIOS.get(name, 0.4), **OPTIONS.get(name, {})}
        with vtprune.pruned(model_of(family), name, **options) as report:
            found = oracle.text_logits(model_of(family), inputs)
            counts.extend(report.tokens)
        return found

    oracle.assert_batch_equals_rows(run, family, samples)
    # a video of one step has nothing that repeats
    assert any(after < before for before, after in counts), "nothing was pruned"


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("name", sorted(set(POLICIES) - VIDEO - {"none"}))
def test_images(family, name):
    """Oracle: every sample alone; unequal numbers of visual tokens and of text."""
    assert_alone_as_in_a_batch(family, name, tiny.samples(family, "ragged"))


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"none"}))
def test_videos(family, name):
    """Oracle: every sample alone."""
    assert_alone_as_in_a_batch(family, name, tiny.video_samples(family, "ragged"))
