"""What the families with states tell of pictures and clips: places, kinds, and signals of their towers."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from itertools import groupby
from math import isqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import vtprune
from tests import tiny
from tests.probe import answer
from tests.release import skip_unable
from tests.test_vision_signals import arrangement, column_means, eager_weights, signals, weights_of
from vtprune.families.base import family_of

# the pixels of a token's edge
SIDES = {"qwen3_5": 28, "lfm2_vl": 14, "lfm3_vl": 28, "minicpmv4_6": 28}
SLOW = pytest.mark.slow(reason="the two families share their tower with one that is tested by default")


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32):
    return tiny.build(family, dtype=dtype)


def processed(family: str, *pictures: np.ndarray) -> dict:
    """What the family's own processor makes of (H, W, 3) pixels that need no resizing.

    LFM2-VL's needs torchvision; of one tile it makes what SigLIP 2's makes.
    """
    if family.startswith("minicpm"):
        return packed([minicpm(picture, isqrt(len(picture) * picture.shape[1]) + 1) for picture in pictures])
    if family == "lfm2_vl":
        processor = hf.Siglip2ImageProcessorPil(patch_size=7, max_num_patches=64, do_resize=False)
    else:
        size = {"shortest_edge": 14 * 14, "longest_edge": 28 * 28 * 64}
        processor = hf.Qwen2VLImageProcessorPil(patch_size=14, size=size)
    made = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt")
    names = inspect.signature(model_of(family).model.get_image_features).parameters
    return {name: made[name] for name in names if name in made}


def minicpm(picture: np.ndarray, scale: int, slices: int = 1) -> dict:
    """What MiniCPM-V's processor makes of a picture that it brings to ``scale`` squared pixels, and cuts."""
    processor = hf.MiniCPMV4_6ImageProcessorPil(patch_size=7, scale_resolution=scale, max_slice_nums=slices)
    return processor(images=[Image.fromarray(picture)], return_tensors="pt")


def packed(made: list) -> dict:
    """Several pictures in one row."""
    pixels = torch.cat([one["pixel_values"] for one in made], -1)
    return {"pixel_values": pixels, "target_sizes": torch.cat([one["target_sizes"] for one in made])}


def apart(family: str) -> torch.nn.Module:
    """A model in whose tower patches do not hear of each other, by attention or convolution."""
    model = copy.deepcopy(model_of(family))
    for tower in set(family_of(model).towers(model).values()):
        for name, part in tower.named_modules():
            if name.endswith((".out_proj", ".attn.proj")):
                for parameter in part.parameters():
                    parameter.data.zero_()
    return model


@pytest.mark.parametrize("family", SIDES)
def test_a_token_s_place_is_where_its_pixels_are(family):
    """Oracle: one cell of one of two pictures made bright; one token changes, and it has that place."""
    model, side = apart(family), SIDES[family]
    pictures = [np.full((2 * side, 3 * side, 3), 40, np.uint8), np.full((3 * side, side, 3), 90, np.uint8)]
    grids = [(2, 3), (3, 1)]

    def features(*pictures):
        with torch.no_grad():
            return model.model.get_image_features(**processed(family, *pictures), return_dict=True).pooler_output

    skip_unable("pictures of unequal size", family, lambda: features(*pictures))
    plain = features(*pictures)
    sources = family_of(model).sources(model, "image", processed(family, *pictures), plain)
    assert [source.grids for source in sources] == [((1, *grid),) for grid in grids]
    for number, (height, width) in enumerate(grids):
        for y, x in np.ndindex(height, width):
            bright = [picture.copy() for picture in pictures]
            bright[number][y * side : (y + 1) * side, x * side : (x + 1) * side] += 80
            pairs = zip(features(*bright), plain, strict=True)
            changed = [(new - old).abs().amax(-1) > 1e-6 for new, old in pairs]
            assert [int(flags.sum()) for flags in changed] == [int(n == number) for n in range(2)]
            assert sources[number].coords[changed[number]].tolist() == [[0, 0, y, x]]


def test_slices_of_a_picture_are_segments():
    """Oracle: the runs of placeholders that MiniCPM-V's processor writes for what its image processor cut."""
    model = model_of("minicpmv4_7")
    marks = {"image": tiny.IMAGE, "image_start": tiny.START, "image_end": tiny.END}
    marks |= {"slice_start": 104, "slice_end": 105}
    tokens = {f"{name}_token": f"{number}," for name, number in marks.items()}
    pixels = np.random.default_rng(0).integers(0, 255, (70, 150, 3), dtype=np.uint8)
    made = minicpm(pixels, 56, slices=4)
    processor = SimpleNamespace(slice_mode=True, **tokens)
    text = hf.MiniCPMV4_6Processor.replace_image_token(processor, made, 0, image_token_divisor=16)
    ids = [int(word) for word in text.replace("\n", "106,").split(",")[:-1]]
    runs = [len(list(run)) for token, run in groupby(ids) if token == tiny.IMAGE]
    inputs = {"input_ids": torch.tensor([[tiny.BOS, *ids, 7]]), **packed([made])}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == tiny.IMAGE).int()
    with vtprune.pruned(model, "random", keep_ratio=0.5) as report, torch.no_grad():
        model(**inputs)
        told = [(kept.of, kept.grids) for kept in report.kept()]
    assert [n for n, _ in told] == runs and len(runs) > 2
    assert [grids for _, grids in told] == [((1, h // 4, w // 4),) for h, w in made["target_sizes"].tolist()]


CLIPS = {  # tokens of each segment in a batch of clips of 4 and 2 frames
    "qwen3_5": [[((2, 2, 4),)], [((1, 2, 4),)]],
    "lfm3_vl": [[((2, 2, 4),)], [((1, 2, 4),)]],
    "minicpmv4_7": [[((1, 2, 4),)] * 4, [((1, 2, 4),)] * 2],
}


@pytest.mark.parametrize("family", CLIPS)
def test_clips_are_videos(family):
    """Oracle: how the clips were made; MiniCPM-V's frames are segments of their own."""
    model = model_of(family)
    with vtprune.pruned(model, "random", keep_ratio=0.5) as report:
        answer(model, tiny.video(family, "ragged", torch.float32), 1)
        told = [[kept.grids for kept in report.kept(b)] for b in range(2)]
        assert {kept.kind for b in range(2) for kept in report.kept(b)} == {"video"}
    assert told == CLIPS[family]


# ------------------------------------------------------------------------------------------------ the vision tower


def encoder_call(family: str, kind: str, dtype: torch.dtype) -> dict:
    """What the encoder gets of two images of unequal size, or of two clips."""
    inputs = tiny.batch(family, "two_images", dtype) if kind == "image" else tiny.video(family, "ragged", dtype)
    encoder = getattr(model_of(family).model, f"get_{kind}_features")
    return {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}


def own_means(family: str, weights: list, arguments: dict) -> torch.Tensor:
    """(patches,) of eager softmaxes: means over heads and queries; tiles of LFM2-VL are padded to the largest."""
    if family != "lfm2_vl":
        return column_means(family, weights, False, arguments)
    (tiles,), parts = weights, []
    for tile, mask in zip(tiles, arguments["pixel_attention_mask"].bool(), strict=True):
        parts.append(tile[:, mask].mean((0, 1)) * mask)
    return torch.cat(parts)


TOWERS = [(family, "image") for family in ("qwen3_5", "lfm2_vl", "lfm3_vl", "minicpmv4_6")]
TOWERS += [pytest.param(f, "video", marks=SLOW) for f in ("qwen3_5", "lfm3_vl", "minicpmv4_6")]


@pytest.mark.parametrize(("name", "kind"), TOWERS)
def test_tower_scores_equal_eager_attention_carried_along_the_features(name, kind, monkeypatch):
    """Oracle: eager softmaxes of the last layer that attends, carried to tokens by the patches each depends on."""
    wide = torch.float64
    exact, family = model_of(name, wide), family_of(model_of(name))
    block = exact.model.visual.blocks[-1] if name == "qwen3_5" else None
    moved = arrangement(name, exact, family, kind, encoder_call(name, kind, wide), False, block)
    share = weights_of(name, kind, moved).float()
    model, arguments = tiny.build(name, dtype=torch.float32), encoder_call(name, kind, torch.float32)
    assert not family.has_class_token(model, kind)
    (got,) = signals(model, family, kind, arguments, "vision_attention")
    weights = eager_weights(model, family, kind, arguments, -1, monkeypatch)
    torch.testing.assert_close(got, share @ own_means(name, weights, arguments), atol=1e-6, rtol=1e-5)
    assert got.std() > 1e-5


def test_scores_from_before_the_merging_layer(monkeypatch):
    """Oracle: eager softmaxes of MiniCPM-V's first layer, and the sixteen patches of each token, one by one."""
    name, model = "minicpmv4_6", tiny.build("minicpmv4_6", dtype=torch.float32)
    arguments = encoder_call(name, "image", torch.float32)
    (got,) = signals(model, family_of(model), "image", arguments, "vision_attention:0")
    weights, at = eager_weights(model, family_of(model), "image", arguments, 0, monkeypatch), 0
    for weight, (high, wide) in zip(weights, arguments["target_sizes"].tolist(), strict=True):
        patches = weight.mean((0, 1, 2)).view(high, wide)
        for y, x in np.ndindex(high // 4, wide // 4):
            cells = patches[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            torch.testing.assert_close(got[at], cells.mean(), atol=1e-6, rtol=1e-5)
            at += 1
    assert at == len(got)


def test_layers_that_convolve_have_no_attention_to_ask_for():
    """LFM3-VL's tower attends in one of its three layers here."""
    model = model_of("lfm3_vl")
    assert len(family_of(model).vision_layers(model)) == 1
    with pytest.raises(ValueError, match="layer -2 of the vision tower, which has layers 0 to 0"):
        vtprune.wrap(model, "visionzip")
