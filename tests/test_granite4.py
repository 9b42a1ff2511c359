"""Granite 4 Vision: its decoder adds to visual tokens in the middle of its loop, which pruned ones get by hooks."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, visible
from tests.tiny_models import text_model
from vtprune import BEFORE_LLM, Selection, VisualTokens, inside

NAME, LAYERS = "granite4_vision", 6  # features are added before layers 0 to 3


@cache
def model_of():
    return tiny.build(NAME, layers=LAYERS)


@pytest.mark.parametrize("sites", [(BEFORE_LLM, inside(1), 3), (0, 2), (3, 5), (inside(2),)])
def test_sites_before_among_and_behind_the_layers_that_add(sites):
    """Oracle: masked columns at full length, greedy tokens and logits of every step and of every text position."""
    model, inputs = model_of(), tiny.batch(NAME, "ragged")
    with vtprune.pruned(model, ByNorm(sites)) as report:
        got, kept = answer(model, inputs), visible(model)
        logits = oracle.text_logits(model, inputs)
        assert [one.grids for one in report.kept(0)] == [((1, 2, 2), (1, 4, 4))]
        assert [one.grids for one in report.kept(1)] == [((1, 2, 2), (1, 2, 4)), ((1, 2, 2), (1, 4, 4))]
        assert not report.notes
    # a row that was dropped inside a layer is no key from the next one on
    moved = {site if site == int(site) else int(site) + 1: mask for site, mask in kept.items()}
    assert len(moved) == len(kept) == len(sites)
    with oracle.MaskedColumns(model, moved):
        expected, expected_logits = answer(model, inputs), oracle.text_logits(model, inputs)
    assert torch.equal(got[0], expected[0])
    for a, b in zip([*got[1], *logits], [*expected[1], *expected_logits], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@dataclass
class Pairs:
    """Every second token becomes the mean of itself and the one behind it."""

    sites: tuple[float, ...]
    needs: frozenset[str] = frozenset()

    def select(self, tokens: VisualTokens) -> Selection:
        row = torch.arange(len(tokens))
        return Selection(row[::2], merge=row // 2)


@pytest.mark.parametrize("site", [BEFORE_LLM, 1, 2, 3])
def test_merged_rows_get_the_mean_of_what_is_added(site):
    """Oracle: the layers in a loop by hand, in which one matrix makes the rows that are left of everything."""
    model, inputs = model_of(), tiny.batch(NAME, "one")
    text, caught = text_model(model), []
    with vtprune.pruned(model, Pairs((site,))), torch.no_grad():
        got = model(**inputs, use_cache=False).logits[0]
        kept = visible(model)[site][0]
    hook = text.register_forward_pre_hook(lambda m, args, kwargs: caught.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs, use_cache=False)
    hook.remove()
    given, patch = caught[0], vtprune_patches(model, inputs)
    visual = patch.nonzero().flatten()
    mix = torch.eye(len(kept), dtype=torch.float64)
    for first, second in zip(visual[::2], visual[1::2]):
        mix[first, first] = mix[first, second] = 0.5
    mix = mix[kept]
    rows, hidden = torch.arange(len(kept)), given["inputs_embeds"][0] * text.config.embedding_multiplier
    mask, matrix = given["vision_mask"][0, :, 0], torch.eye(len(kept), dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(text.layers):
            if index in given["deepstack_features"]:
                full = torch.zeros(len(kept), hidden.shape[1], dtype=torch.float64)
                full[mask] = given["deepstack_features"][index]
                hidden = hidden + matrix @ full
            if index == max(site, 0):
                hidden, rows, matrix = mix @ hidden, rows[kept], mix
            tables = text.rotary_emb(hidden[None], position_ids=rows[None])
            hidden = layer(hidden[None], position_embeddings=tables, attention_mask=None)[0]
        expected = model.lm_head(text.norm(hidden)) / model.config.text_config.logits_scaling
    torch.testing.assert_close(got[rows], expected, atol=1e-9, rtol=0)


def vtprune_patches(model, inputs) -> torch.Tensor:
    """(L,) bool: placeholders that are no newlines, as the whole prompt's layout tells them."""
    with vtprune.pruned(model, ByNorm((LAYERS - 1,))) as report, torch.no_grad():
        model(**inputs, use_cache=False)
        row = report.last.layout.rows[0]
    patch = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    patch[row.columns[row.patch]] = True
    return patch
