"""What families of pictures in tiles, crops and latents tell: places, signals of the tower, costs."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

import vtprune
from tests import oracle, tiny
from tests.newer.molmo2 import PATCHES
from tests.probe import ByNorm, answer, visible
from tests.test_flops import assert_same, count, counted
from tests.test_flops_vision import compare
from tests.test_report import count_flops
from tests.test_unprojected import Look, looked
from tests.test_vision_signals import arrangement, column_means, eager_weights, signals
from vtprune import BEFORE_LLM
from vtprune.families.base import family_of
from vtprune.flops import Flops, decoder_flops, kv_bytes

PLAIN = ("vipllava", "deepseek_vl", "janus")
SQUARES = (*PLAIN, "deepseek_vl_hybrid", "cohere2_vision", "ovis2", "aya_vision", "qianfan_ocr", "llama4")
SQUARES += ("granite_docling",)
LATENTS = ("aria", "idefics2")
CLIPS = ("molmo2", "perception_lm")
ALL = (*SQUARES, *LATENTS, *CLIPS, "lighton_ocr", "got_ocr2", "fast_vlm")
CLASSED = ("vipllava", "qianfan_ocr")
UNCOUNTED = ("deepseek_vl_hybrid", "got_ocr2")
COUNTED = [family for family in ALL if family != "llama4"]  # it computes every expert for every token
PLACED = [*((f, "image") for f in (*SQUARES, *CLIPS, "lighton_ocr", "hunyuan_vl")), *((f, "video") for f in CLIPS)]
PIXELS = ("pixel_", "high_res", "image_", "video_")


@cache
def model_of(family: str):
    return tiny.build(family)


@cache
def small(family: str):
    return tiny.build(family, dtype=torch.float32)


def pixels_of(inputs: dict) -> dict:
    """The arguments of the encoder among the inputs of a model."""
    known = ("image_num_crops",)
    return {name: value for name, value in inputs.items() if name.startswith(PIXELS) and name not in known}


def features_of(model, kind, arguments):
    base = tiny.base_model(model)
    if kind == "video" and not hasattr(base, "get_video_features"):
        return base.get_image_features(pixel_values=arguments["pixel_values_videos"]).pooler_output.flatten(0, 1)
    with torch.no_grad():
        found = family_of(model).features(getattr(base, f"get_{kind}_features")(**arguments, return_dict=True))
    return torch.cat([feature.reshape(-1, feature.shape[-1]) for feature in found])


# -------------------------------------------------------------------------------------------------- places


def without_tower_attention(family: str):
    """A model in whose vision tower no patch hears of another, so that a token is what its own pixels are."""
    model = copy.deepcopy(model_of(family))
    (tower,) = set(family_of(model).towers(model).values())
    for module in tower.modules():
        for name in ("out_proj", "o_proj", "projection_layer"):
            if hasattr(module, name):
                for parameter in getattr(module, name).parameters():
                    parameter.data.zero_()
    return model


def cells(family: str, kind: str, inputs: dict, grids: list):
    """(what to make brighter, the source, view, frame, row and column of the token that shows it), cell by cell."""
    name = "pixel_values_videos" if kind == "video" else "pixel_values"
    pictures = inputs[name].flatten(0, -4) if inputs[name].dim() > 3 else inputs[name]
    where = [(s, v, t, *grid[1:]) for s, views in enumerate(grids) for v, grid in enumerate(views)
             for t in range(grid[0])]  # fmt: skip
    if family == "hunyuan_vl":  # packed patches, of which 2 x 2 make a token
        first = 0
        for source, ((_, height, width),) in enumerate(grids):
            for y in range(height):
                for x in range(width):
                    yield (inputs[name], (first + 4 * y * width + 2 * x,)), (source, 0, 0, y, x)
            first += 4 * height * width
        return
    if family == "molmo2":
        places = [(*place[:3], y, x) for place in where for y in range(place[3]) for x in range(place[4])]
        for patches, place in zip(inputs[f"{kind}_token_pooling"], places, strict=True):
            patch = int(patches.max())
            yield (pictures, (patch // PATCHES, patch % PATCHES)), place
        return
    for picture, (source, view, frame, height, width) in enumerate(where):
        side = pictures.shape[-1] // width
        for y in range(height):
            for x in range(width):
                cut = (picture, slice(None), slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
                yield (pictures, cut), (source, view, frame, y, x)


@pytest.mark.parametrize(("family", "kind"), PLACED)
def test_a_token_s_place_is_where_its_pixels_are(family, kind):
    """Oracle: one cell of one picture made bright; one token changes at the encoder's output, and it has that place."""
    model = without_tower_attention(family)
    inputs = tiny.batch(family, "two_images") if kind == "image" else tiny.video(family, "one")
    with vtprune.pruned(model, "none") as report:
        oracle.text_logits(model, inputs)
        row = report.last.layout.rows[0]
        where = [(s, *place) for s, place in zip(row.source.tolist(), row.coords.tolist(), strict=True)]
        assert {source.kind for source in row.sources} == {kind}
    arguments = pixels_of(inputs)
    plain = features_of(model, kind, arguments)
    placed = [place for place in where if place[1] >= 0]  # marks and newlines are in none
    assert len(plain) == len(where) and len(placed) == len(set(placed)) == int(row.patch.sum())
    for (pictures, cut), place in cells(family, kind, inputs, [source.grids for source in row.sources]):
        before = pictures[cut].clone()
        pictures[cut] += 3  # a view of the inputs themselves
        changed = (features_of(model, kind, arguments) != plain).any(-1).nonzero().flatten().tolist()
        pictures[cut] = before
        assert [where[token] for token in changed] == [place]


def test_a_video_beside_images_is_told_from_them():
    """PerceptionLM encodes both by one method. Oracle: the placeholders of the prompt; masked columns."""
    model, inputs = model_of("perception_lm"), tiny.video("perception_lm", "with_image")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report:
        got = answer(model, inputs, 3)
        kept = visible(model)
        told = [[(one.kind, one.of) for one in report.kept(b)] for b in range(2)]
    assert told == [[("video", 16), ("image", 12)], [("image", 12), ("video", 16)]]
    with oracle.MaskedColumns(model, kept):
        expected = answer(model, inputs, 3)
    assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("family", LATENTS)
def test_latents_have_an_order_and_no_place(family):
    model = model_of(family)
    with vtprune.pruned(model, "random", keep_ratio=0.5) as report:
        answer(model, tiny.batch(family, "ragged"), 2)
        assert [[(k.of, k.grids) for k in report.kept(b)] for b in range(2)] == [[(8, ())], [(8, ())] * 2]
    with pytest.raises(NotImplementedError, match="learnt query that has read all patches"):
        vtprune.wrap(model, Look("vision_attention"))


def test_real_processors_fit():
    """Oracle: the runs of placeholders that the processors write for the pictures that they cut."""
    wide = np.random.default_rng(0).integers(0, 255, (60, 130, 3), dtype=np.uint8)
    ovis = hf.Ovis2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    seen = ovis([wide], return_tensors="pt")
    run = hf.Ovis2Processor.replace_image_token(SimpleNamespace(image_seq_length=4), seen, 0)
    marks = {"<IMG_START>": tiny.START, "<IMG_ATOM>": tiny.IMAGE, "<IMG_GRID>": 110, "<IMG_COL>": 111}
    ids = [{**marks, "<IMG_ROW>": 112, "<IMG_END>": tiny.END}["<" + mark] for mark in run.split("<")[1:]]
    assert told("ovis2", ids, pixel_values=seen["pixel_values"]) == [(4, ((1, 2, 2),))] * len(seen["pixel_values"])
    assert len(seen["pixel_values"]) == ids.count(tiny.IMAGE) // 4 > 2
    seen = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 14, "longest_edge": 28})([[wide, wide[:, :40]]])
    seen = {name: torch.as_tensor(np.array(value)) for name, value in seen.items()}
    assert told("idefics2", [tiny.IMAGE] * 16, **seen) == [(8, ())] * 2
    seen = hf.AriaImageProcessorPil(max_image_size=980, min_image_size=336)([wide[:, :40]], return_tensors="pt")
    few = {"pixel_values": seen["pixel_values"][..., :28, :28], "pixel_mask": seen["pixel_mask"][..., :28, :28]}
    assert told("aria", [tiny.IMAGE] * 8, **few) == [(8, ())]


def told(family, ids, **pixels):
    """The length and the views of every source of one prompt."""
    model, ids = small(family), torch.tensor([[1, *ids, 5]])
    with vtprune.pruned(model, "random", keep_ratio=0.5) as report, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels)
        return [(one.of, one.grids) for one in report.kept()]


# ------------------------------------------------------------------------------------------- signals of the tower


@pytest.mark.parametrize("family", (*SQUARES, "molmo2", "lighton_ocr"))
def test_scores_of_the_tower_take_the_way_of_the_features(family, monkeypatch):
    """Oracle: eager softmaxes, carried to tokens by the patches that each feature depends on."""
    model, known = copy.deepcopy(small(family)), family_of(model_of(family))
    classed = family in CLASSED
    assert known.has_class_token(model) == classed
    wide = pixels_of(tiny.batch(family, "two_images"))
    arguments = {name: value.float() if value.is_floating_point() else value for name, value in wide.items()}
    inner = known  # of towers that hold what joins patches too, the part before that
    if family == "ovis2":
        inner = SimpleNamespace(towers=lambda model: {"image": model.model.vision_tower.transformer})
    elif family == "llama4":
        inner = SimpleNamespace(towers=lambda model: {"image": model.vision_model.model})
    block = model_of(family).model.vision_model.encoder.layers[-1] if family == "granite_docling" else None
    made_of = (arrangement(family, model_of(family), inner, "image", wide, classed, block) > 0).float()
    share = made_of / made_of.sum(1, keepdim=True)
    needs = ["vision_attention"] + ["cls_attention:-3,-2"] * classed
    attention, *of_class = signals(model, known, "image", arguments, *needs)
    weights = eager_weights(model, known, "image", arguments, -1, monkeypatch)
    # all images of a Pixtral tower lie in one sequence
    expected = share @ column_means("mistral3" if family == "lighton_ocr" else family, weights, classed, arguments)
    torch.testing.assert_close(attention, expected, atol=1e-6, rtol=1e-5)
    assert attention.std() > 1e-5
    for got in of_class:
        softmax = [eager_weights(model, known, "image", arguments, layer, monkeypatch) for layer in (-3, -2)]
        rows = torch.stack([torch.cat(w)[:, :, 0, 1:].transpose(0, 1).flatten(1) for w in softmax])
        torch.testing.assert_close(got, rows @ share.T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", (*PLAIN, "qianfan_ocr"))
@torch.no_grad()
def test_unprojected_features_are_in_the_places_of_their_tokens(family):
    """Oracle: the model's own projector gives the visual tokens that stand in the prompt."""
    for tokens, seen in looked(model_of(family), tiny.batch(family, "ragged"), "unprojected"):
        torch.testing.assert_close(seen["unprojected"].project(seen["unprojected"].features), tokens.hidden)


@pytest.mark.parametrize(
    "family", ["gemma3", "mistral3", *(f for f in ALL if f not in (*PLAIN, "qianfan_ocr", "fast_vlm"))]
)
def test_projectors_that_join_rows_are_refused(family):
    with pytest.raises(ValueError, match="no projector that takes one row for each"):
        vtprune.wrap(model_of(family), Look("unprojected"))


@pytest.mark.parametrize(
    ("family", "why"), [("perception_lm", "timm model"), ("fast_vlm", "timm model"), ("got_ocr2", "padded windows")]
)
def test_towers_that_are_not_looked_into(family, why):
    with pytest.raises(NotImplementedError, match=why):
        vtprune.wrap(model_of(family), Look("vision_attention"))


# -------------------------------------------------------------------------------------------------- positions


def test_molmo2_counts_compact_positions_in_both_its_rotary_tables():
    """Oracle: ``generate`` on embeddings from which the dropped rows were cut by hand; text that sees back only."""
    model, inputs = model_of("molmo2"), tiny.batch("molmo2", "ragged")
    del inputs["mm_token_type_ids"]
    assert len(set(model.model.language_model.rope_types)) == 2
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,), positions="compact")):
        got = tiny.greedy(model, inputs, 5)
        kept = visible(model)[BEFORE_LLM]
    expected = oracle.shortened(model, inputs, kept, 5)
    assert torch.equal(got.sequences[:, inputs["input_ids"].shape[1] :], expected.sequences)
    for a, b in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_llama_4_is_refused_from_where_its_queries_are_scaled_by_row_numbers():
    """Oracle: masked columns, up to there; one token more is refused, and would have been off."""
    model, inputs = copy.deepcopy(model_of("llama4")), tiny.batch("llama4", "one")
    config, length = tiny.text_model(model).config, inputs["input_ids"].shape[1]
    for layer in tiny.text_model(model).layers:
        layer.self_attn.floor_scale = 8
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))):
        got, kept = answer(model, inputs, 2), visible(model)
        config.floor_scale = length
        with pytest.raises(NotImplementedError, match=f"prompt of {length} tokens reaches the {length}"):
            answer(model, inputs, 2)
        config.floor_scale = length + 1
        answer(model, inputs, 1)
    with oracle.MaskedColumns(model, kept):
        assert not torch.allclose(answer(model, inputs, 2)[1][0], got[1][0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------ costs


@pytest.mark.parametrize("family", [f for f in COUNTED if f != "idefics2"])
def test_decoder_flops_equal_the_counter(family):
    """Oracle: torch's counter around the decoder of the unwrapped model. (It fails on Idefics2's perceiver.)"""
    model, inputs = small(family), tiny.batch(family, "ragged", torch.float32)
    config, (samples, length) = tiny.text_model(model).config, inputs["input_ids"].shape
    mine = sum([decoder_flops(config, [length] * config.num_hidden_layers)] * samples, Flops())
    name = "language_model" if family != "granite_docling" else "text_model"
    assert_same(mine, counted(count(lambda: model(**inputs)), name))


@pytest.mark.parametrize("family", [f for f in (*SQUARES, "lighton_ocr") if f not in UNCOUNTED])
def test_vision_flops_equal_the_counter(family):
    """Oracle: torch's counter around the vision tower and the projector of the unwrapped model."""
    assert_same(*compare(small(family), tiny.batch(family, "ragged", torch.float32)))


@pytest.mark.parametrize("family", UNCOUNTED)
def test_vision_flops_that_no_formula_knows_are_refused(family):
    model = small(family)
    with vtprune.pruned(model, "random") as report:
        answer(model, tiny.batch(family, "one", torch.float32), 1)
        with pytest.raises(NotImplementedError, match=f"unknown for '{family}'"):
            _ = report.flops_vision


def test_a_report_says_what_it_cannot_count():
    with vtprune.pruned(small("llama4"), "random") as report:
        answer(small("llama4"), tiny.batch("llama4", "one", torch.float32), 1)
        assert f"{report.kv_bytes:,} bytes measured" in str(report) and "num_local_experts" in str(report)


@pytest.mark.parametrize("family", COUNTED)
def test_the_report_counts_what_is_there(family):
    """Oracle: the cache itself, and torch's counter around the whole pruned forward less the vision side."""
    model, inputs = small(family), tiny.batch(family, "one", torch.float32)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report, torch.no_grad():
        held = model(**inputs, use_cache=True).past_key_values
        nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in held.layers)
        assert report.kv_bytes == report.kv_bytes_predicted == nbytes < report.kv_bytes_unpruned
        assert f"{nbytes:,} bytes measured" in str(report) and report.kept()
        if family != "idefics2":
            total = count_flops(lambda: model(**inputs, logits_to_keep=1))
            vision = count_flops(lambda: model.model.get_image_features(**pixels_of(inputs), return_dict=True))
            assert report.flops.total == total - vision < report.flops_unpruned.total
    lengths = [len(inputs["input_ids"][0])] * 4
    assert report.kv_bytes_unpruned == kv_bytes(tiny.text_model(model).config, lengths, 4)
