"""Every policy with several images, all back ends, a static cache, beams, a second turn; five of them by default."""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401  a fixture
from tests.policies import contract
from tests.policies.contract import PRUNING, RATIOS, VIDEO

# towers of the tiny models have three layers, decoders four
FIVE = {
    "vtc_cls": {"layers": (-2,), "keep_ratio": 0.4},
    "transprune": {"keep_ratio": 0.3},
    "idpruner": {"keep_ratio": 0.4},
    "framefusion": {"keep_ratio": 0.6},
    "quota": {"keep_ratio": 0.5},
}
OPTIONS = {name: {"keep_ratio": RATIOS.get(name, 0.4), **contract.OPTIONS.get(name, {})} for name in PRUNING} | FIVE
BY_CONTENT = ("framefusion", "llava_scissor")
"""Their counts follow from what images show, one by one."""
ALL = pytest.mark.slow(reason="the other policies; `make test-matrix` runs them")
every_policy = pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FIVE else ALL) for n in PRUNING])


@cache
def model_of(family: str, attn: str = "sdpa", dtype=torch.float64):
    return tiny.build(family, attn, dtype)


def survivors(report) -> list[list[list[int]]]:
    return [[rows.tolist() for rows in record.kept] for record in report.sites]


@every_policy
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "idefics3"])
def test_every_image_has_its_own_budget(family, name):
    """Oracle: the same policy on the same images in prompts of their own keeps as many of each; none is starved."""
    if name in VIDEO:
        pytest.skip("it keeps images whole, or takes them for the frames of a video")
    model, inputs = model_of(family), tiny.batch(family, "two_images")
    with vtprune.pruned(model, name, **OPTIONS[name]) as report:
        oracle.text_logits(model, inputs)
        for b, row in enumerate(report.last.layout.rows):
            kept = report.kept(b)
            assert [one.source for one in kept] == list(range(len(row.sources)))
            counts = [len(one.rows) for one in kept]
            assert all(0 < count < one.of or one.of == 1 for count, one in zip(counts, kept))
            by_size = {}
            for count, one in zip(counts, kept):
                by_size.setdefault((one.of, one.grids), set()).add(count)
            if name not in BY_CONTENT:
                assert all(len(found) == 1 for found in by_size.values()), "equal images, unequal shares"


@every_policy
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_back_ends_agree(family, name, flash):  # noqa: F811
    """Oracle: sdpa; eager attention and FlashAttention's interface keep the same tokens, and no prompt seems packed."""
    inputs, kept = tiny.batch(family, "ragged", torch.float32), []
    models = (tiny.build(family, attn, torch.float32) for attn in ("sdpa", "eager"))
    for model in (*models, use_fake_flash(tiny.build(family, "sdpa", torch.float32))):
        with vtprune.pruned(model, name, **OPTIONS[name]) as report:
            tiny.greedy(model, inputs, 3)
            kept.append(survivors(report))
    assert kept[0] == kept[1] == kept[2]
    assert flash.calls["mask2d"] and not flash.calls["packed"]


@every_policy
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_static_cache_and_beams_work(family, name):
    """Oracle: the dynamic cache; of beams, the first beam's tokens of a single one when only one is asked for."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    with vtprune.pruned(model, name, **OPTIONS[name]):
        expected = tiny.greedy(model, inputs, 4).sequences
        assert torch.equal(tiny.greedy(model, inputs, 4, cache_implementation="static").sequences, expected)
        assert torch.equal(tiny.beams(model, inputs, 4, num_beams=1).sequences, expected)
        assert tiny.beams(model, inputs, 4).sequences.shape[0] == len(expected)


@every_policy
def test_a_second_turn_prunes_the_new_image_alone(name):
    """Oracle: what the first turn kept stays in the cache; the report counts the new image."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, name, **OPTIONS[name]) as report:
        first = tiny.greedy(model, inputs, 3)
        before = report.tokens[0]
        more = tiny.new_turn("llava", model, inputs, first.sequences, image=True)
        tiny.greedy(model, more, 3, past_key_values=first.past_key_values)
        assert report.prefills == 2 and (report.tokens[0] == before or name in BY_CONTENT)


@every_policy
def test_a_prompt_without_pictures_is_untouched(name):
    """Oracle: the unwrapped model."""
    model = model_of("llava")
    text = {"input_ids": torch.tensor([[1, 5, 6, 7, 8]]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
    expected = model.generate(**text, max_new_tokens=4, do_sample=False)
    with vtprune.pruned(model, name, **OPTIONS[name]) as report:
        assert torch.equal(model.generate(**text, max_new_tokens=4, do_sample=False), expected)
        assert report.without_visual == 1


@every_policy
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_onevision"])
def test_keeping_everything_changes_no_bit(family, name):
    """Oracle: the unwrapped model."""
    model, inputs = model_of(family, "sdpa", torch.float32), tiny.batch(family, "padded", torch.float32)
    expected = oracle.text_logits(model, inputs)
    options = {**OPTIONS[name], "keep_ratio": 1.0}
    with vtprune.pruned(model, name, **options, positions="original"):
        assert all(map(torch.equal, oracle.text_logits(model, inputs), expected))
