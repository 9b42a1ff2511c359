"""What policies say they will leave, and what their keep_ratio is. Oracles: what they then leave, by site and layer."""

import dataclasses
from functools import cache

import pytest
import torch

import vtprune
from tests.policies.fabricate import Sample, serve
from tests.policies.test_all import names, option_names
from vtprune.cli.clips import read_clip
from vtprune.cli.prompt import make_inputs, split_prompt
from vtprune.models import load
from vtprune.policies.base import KEEP_RATIO_IS, POLICIES, keep_ratio_is

with_ratio = names(lambda name: "keep_ratio" in option_names(name))

AT_MOST = {"llava_scissor", "sttm"}
"""Their thresholds leave as many or fewer; sttm's coarsest cells may be more."""


# FrameFusion says at every site what it would leave if it pruned there; tests/test_at_flops.py has what comes of it
@names(lambda name: "keep_ratio" in option_names(name) and name != "framefusion")
def test_a_forecast_comes_true(name):
    for layout in ("anyres", "mixed", "video"):
        for ratio, budget in ((0.1, "segment"), (0.3, "prompt"), (0.77, "segment")):
            options = {"keep_ratio": ratio, "budget": budget}
            try:
                policy = POLICIES[name](**{k: v for k, v in options.items() if k in option_names(name)})
            except ValueError:
                assert name == "dycoke" and ratio < 0.25
                continue
            sample = Sample(layout)
            # another ratio than its own, too: the forecast is of any
            other = dataclasses.replace(policy, keep_ratio=0.6).forecast(sample.at(policy.sites[0], policy.needs))
            told, living = dict(other.left(ratio)), len(sample)
            assert other.least <= ratio
            for tokens, selection in serve(policy, sample):
                living = told.get(tokens.site, living)
                if name in AT_MOST:
                    assert len(selection.keep) <= living or "coarsest cells" in selection.note, (layout, ratio)
                else:
                    assert len(selection.keep) == living, (layout, ratio, tokens.site)


@cache
def clip_prompt():
    """The embedded video model with 16 frames of the bundled clip: 8 slices of 16 tokens."""
    loaded = load("embedded-video")
    parts = split_prompt("What color is the 8?", [], [read_clip(None, n=16).frames], loaded.processor)
    return loaded.model, dict(make_inputs(loaded, parts))


COARSE = {"dycoke": 1 / 16, "flashvid": 1 / 16, "quota": 1 / 8, "sttm": 0.03, "llava_scissor": 0.03}
"""By how much a ratio is missed with frames of 16 tokens: a token of each frame that is rounded, the grids that a frame
can be resized to, the tokens that a threshold takes at once."""


@with_ratio
def test_a_keep_ratio_is_what_it_is_said_to_be(name):
    """Oracle: the tokens behind the last site, or those that each of the six layers has, by the cache."""
    model, inputs = clip_prompt()
    with vtprune.pruned(model, name, keep_ratio=0.5) as report, torch.no_grad():
        cache_ = model(**inputs, logits_to_keep=1).past_key_values
        before, after = report.tokens[0]
        found = report.achieved()
    text = inputs["input_ids"].shape[1] - before
    layers = [layer.keys.shape[-2] - text for layer in cache_.layers]
    real = {"final": after / before, "layers": sum(layers) / len(layers) / before}
    assert (found.final, found.layers) == (pytest.approx(real["final"]), pytest.approx(real["layers"]))
    meaning = keep_ratio_is(POLICIES[name])
    assert (found.asked, found.counts) == (0.5, KEEP_RATIO_IS[meaning])
    if meaning == "published":
        # a mean over the layers that leaves out merged tokens and a layer, as the publication counts
        assert 0.5 < real["layers"] < 0.6
    else:
        assert real[meaning] == pytest.approx(0.5, abs=COARSE.get(name, 0.5 / 128 + 1e-9) + 1 / 128 / 6)
