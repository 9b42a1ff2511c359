"""Signals of the families beyond the first 14: decoder attention, and the vision tower on its way to the tokens."""

import inspect
from functools import cache

import pytest
import torch

import vtprune
from tests import tiny
from tests.newer.base import mostly_slow
from tests.test_signals import eager_rows, text_rows
from tests.test_vision_signals import arrangement, column_means, eager_weights, signals, weights_of
from vtprune.families.base import FAMILIES, family_of
from vtprune.tokens import BEFORE_LLM, Selection

ROWS = ("text_attention", "text_attention:peek", "last_query_attention")
MASKED = [name for name, newer in tiny.NEWER.items() if not newer.hybrid]


class Look:
    """Keeps everything and remembers what it saw of each sample."""

    def __init__(self, site, *needs):
        self.sites, self.needs, self.seen = (site,), frozenset(needs), []

    def select(self, tokens):
        self.seen.append((tokens, {name: tokens.signals[name] for name in self.needs}))
        return Selection.all(tokens)


@cache
def model_of(family: str, attn: str, dtype: torch.dtype = torch.float32):
    return tiny.build(family, attn, dtype)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", mostly_slow(MASKED, ("qwen3_vl_moe", "glm4v_moe", "kimi_k25", "mistral3_m4")))
def test_rows_equal_eager_attention(family, use_cache):
    """Oracle: eager ``output_attentions`` of two left-padded samples in the unwrapped model."""
    inputs = tiny.batch(family, "ragged", torch.float32)
    rows = text_rows(inputs)
    expected = eager_rows(model_of(family, "eager"), inputs, rows)
    look = Look(2, *ROWS)
    with vtprune.pruned(model_of(family, "sdpa"), look), torch.no_grad():
        model_of(family, "sdpa")(**inputs, use_cache=use_cache)
    seen = inputs["attention_mask"].bool() & ~tiny.visual(inputs)
    for b, (tokens, found) in enumerate(look.seen):
        first = int(inputs["attention_mask"][b].argmax())
        n = int(seen[b].sum())
        for layer, name in ((1, ROWS[0]), (2, ROWS[1])):
            want = expected[layer][b, -n:][:, tokens.position + first]
            torch.testing.assert_close(found[name], want, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[ROWS[2]], found[ROWS[0]][-1], atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ the vision tower

TOWERS = ("qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe", "glm4v", "glm46v", "glm4v_moe")
TOWERS += ("paddleocr_vl", "video_llama_3", "kimi_k25", "ernie4_5_vl_moe")
TOWERS += ("glm_ocr", "cosmos3_omni", "exaone4_5", "hyperclovax_vision_v2", "hunyuan_vl")
ENCODED = [(name, "image") for name in TOWERS] + [(name, "video") for name in TOWERS if tiny.NEWER[name].clip]
USUAL = [("qwen2_5_omni", "image"), ("glm4v", "video"), ("paddleocr_vl", "image"), ("video_llama_3", "image")]
USUAL += [("kimi_k25", "video")]


def encoder_call(family: str, kind: str, dtype: torch.dtype = torch.float32) -> dict:
    """What the encoder gets of two images of unequal size, or of two clips."""
    inputs = tiny.batch(family, "two_images", dtype) if kind == "image" else tiny.video(family, "ragged", dtype)
    encoder = getattr(model_of(family, "sdpa", dtype).model, f"get_{kind}_features")
    return {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}


def last_block(model, family, kind):
    last = family.vision_layers(model, kind)[-1]
    tower = family.towers(model)[kind]
    return next(module for module in tower.modules() if any(part is last for part in module.children()))


@pytest.mark.parametrize(("name", "kind"), mostly_slow(ENCODED, USUAL))
def test_tower_scores_equal_eager_attention_carried_along_the_features(name, kind, monkeypatch):
    """Oracle: eager softmaxes, carried to tokens by the patches that each feature depends on."""
    wide = torch.float64
    exact, family = model_of(name, "sdpa", wide), family_of(model_of(name, "sdpa", wide))
    block = last_block(exact, family, kind)
    moved = arrangement(name, exact, family, kind, encoder_call(name, kind, wide), False, block)
    share = weights_of(name, kind, moved).float()
    # its back end is switched, so it is one of its own
    model, arguments = tiny.build(name, dtype=torch.float32), encoder_call(name, kind)
    assert not family.has_class_token(model, kind)
    last, first = signals(model, family, kind, arguments, "vision_attention", "vision_attention:0")
    for got, layer in ((last, -1), (first, 0)):
        weights = eager_weights(model, family, kind, arguments, layer, monkeypatch)
        torch.testing.assert_close(got, share @ column_means(name, weights, False, arguments), atol=1e-6, rtol=1e-5)
        assert got.std() > 1e-5


def test_frames_of_a_chunk_are_averaged():
    """Oracle: every patch of the chunk, one by one. The model takes chunks of one frame only, its family more."""
    model, (t, h, w) = model_of("kimi_k25", "sdpa"), (3, 4, 6)
    scores = torch.rand(1, 2, t * h * w)
    (got,) = FAMILIES["kimi_k25"].spread(model, "video", {"video_grid_thw": torch.tensor([[t, h, w]])}, scores, [6])
    patches = scores.view(2, t, h, w)
    for token in range(6):
        y, x = divmod(token, w // 2)
        cells = [patches[:, i, 2 * y + a, 2 * x + b] for i in range(t) for a in range(2) for b in range(2)]
        torch.testing.assert_close(got[:, token], torch.stack(cells).mean(0))
    (source,) = FAMILIES["kimi_k25"].sources(model, "video", {"video_grid_thw": torch.tensor([[t, h, w]])}, [None])
    assert (len(source), source.grids) == (6, ((1, 2, 3),))


def test_what_a_clip_leaves_out_has_no_signal_and_no_place():
    """Oracle: the scores and the raster places of the whole clip, without those that its processor leaves out."""
    name, inputs = "video_llama_3", tiny.video("video_llama_3", "ragged", torch.float32)
    model, look = model_of(name, "sdpa"), Look(BEFORE_LLM, "vision_attention")
    (whole,) = signals(model, family_of(model), "video", encoder_call(name, "video"), "vision_attention")
    with vtprune.pruned(model, look), torch.no_grad():
        model(**inputs)
    at = 0
    for (tokens, seen), frames in zip(look.seen, (4, 2), strict=True):
        kept = inputs["video_compression_mask"][at : at + 8 * frames]
        assert 8 < len(tokens) == int(kept.sum()) < len(kept)
        torch.testing.assert_close(seen["vision_attention"], whole[at : at + 8 * frames][kept])
        places = [[0, t, y, x] for t in range(frames) for y in range(2) for x in range(4)]
        assert tokens.coords.tolist() == [place for place, there in zip(places, kept.tolist(), strict=True) if there]
        assert tokens.segments[0].grids == ((frames, 2, 4),) and tokens.segments[0].kind == "video"
        at += 8 * frames
