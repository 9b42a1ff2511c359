"""What Gemma 3n and 4, Ernie 4.5 VL and Phi-4 tell of pictures: places, signals of their towers, costs."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn

import vtprune
from tests import tiny
from tests.newer.gemma import places
from tests.probe import ByNorm
from tests.test_flops import assert_same, count, counted
from tests.test_newer_costs import test_decoder_and_cache_equal_the_counter as decoder_equals_the_counter
from tests.test_newer_signals import Look
from vtprune import BEFORE_LLM
from vtprune.families.base import family_of
from vtprune.flops import decoder_flops, kv_bytes

GEMMA4 = ("gemma4", "gemma4_unified")
ATTENTION = "vision_attention"


@cache
def model_of(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32):
    return tiny.build(family, attn, dtype)


# ------------------------------------------------------------------------------------------------------------ places


@cache
def apart(family: str) -> nn.Module:
    """A model in whose tower patches do not attend to each other: each token depends on its own pixels alone."""
    model = tiny.build(family, dtype=torch.float64)
    for tower in family_of(model).towers(model).values():
        for name, parameter in tower.named_parameters():
            if ".o_proj." in name or ".out_proj." in name:
                nn.init.zeros_(parameter)
    return model


def picture(family: str, pixels: np.ndarray) -> dict:
    """What the image processor makes of (H, W, 3) pixels; that of Gemma 4 Unified, like all for clips, needs more."""
    if family == "gemma4":
        processor = hf.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
        made = processor(images=[Image.fromarray(pixels)], do_resize=False, return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_position_ids")}
    made = clip(family, pixels[None])
    return {"pixel_values": made["pixel_values_videos"], "image_position_ids": made["video_position_ids"]}


def clip(family: str, pixels: np.ndarray) -> dict:
    """(T, H, W, 3) pixels as the video processor hands them on: patches of 4 x 4 in raster order, padding behind."""
    frames, height, width, _ = pixels.shape
    patches = torch.from_numpy(pixels / 255.0).view(frames, height // 4, 4, width // 4, 4, 3)
    patches = patches.permute(0, 1, 3, 2, 4, 5).reshape(frames, -1, 48)
    room = patches.shape[1] + 16
    told = {"video_position_ids": places(height // 4, width // 4, room).expand(frames, -1, -1)}
    told["num_frames_per_video"] = torch.tensor([frames])
    return {"pixel_values_videos": nn.functional.pad(patches, (0, 0, 0, room - patches.shape[1])), **told}


def encoded(family: str, kind: str, pixels: np.ndarray) -> tuple[Tensor, list]:
    """The features of all tokens, and the place of each."""
    model, known = apart(family), family_of(apart(family))
    arguments = picture(family, pixels[0]) if kind == "image" else clip(family, pixels)
    with torch.no_grad():
        features = getattr(model.model, f"get_{kind}_features")(**arguments, return_dict=True).pooler_output
    (source,) = known.sources(model, kind, arguments, features)
    assert [len(source)] == [len(feature) for feature in features] and bool(source.patch.all())
    return torch.cat(list(features)), source.coords.tolist()


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", GEMMA4)
def test_a_token_of_gemma_4_is_where_its_pixels_are(family, kind):
    """Oracle: the pixels of one place are inverted; as patches do not attend to each other, one token changes."""
    side = 8 if family == "gemma4" else 4
    t, h, w = (1, 3, 5) if kind == "image" else (2, 2, 3)
    pixels = np.random.default_rng(3).integers(0, 256, (t, h * side, w * side, 3), dtype=np.uint8)
    plain, coords = encoded(family, kind, pixels)
    assert len(coords) == t * h * w
    for i, y, x in {(0, 0, 1), (t - 1, h - 1, 0), (0, 1, w - 1)}:
        changed = pixels.copy()
        changed[i, y * side : (y + 1) * side, x * side : (x + 1) * side] ^= 255
        (token,) = (encoded(family, kind, changed)[0] - plain).norm(dim=1).nonzero().flatten().tolist()
        assert coords[token] == [0, i, y, x]


def test_videos_of_as_many_frames_may_come_stacked():
    """As transformers 5.9 takes them; oracle: one after the other, as 5.23 does."""
    model, one = model_of("gemma4"), places(4, 6, 30).expand(3, -1, -1)
    for told in ({"video_position_ids": torch.stack([one, one])}, {"video_position_ids": torch.cat([one, one])}):
        if told["video_position_ids"].dim() == 3:
            told["num_frames_per_video"] = torch.tensor([3, 3])
        assert [source.grids for source in family_of(model).sources(model, "video", told, ())] == [((3, 2, 3),)] * 2


def phi4_picture(pixels: Tensor, crops: tuple[int, int], real: tuple[int, int]) -> dict:
    """(H, W, 3) pixels as the image processor, which needs torchvision, cuts them: a thumbnail and crops of 28 x 28.

    real: rows and columns of patches of 7 x 7 that are no padding. The thumbnail is made up.
    """
    rows, columns = crops
    cut = pixels.view(rows, 28, columns, 28, 3).permute(0, 2, 4, 1, 3).reshape(rows * columns, 3, 28, 28)
    mask = torch.zeros(rows * 4, columns * 4)
    mask[: real[0], : real[1]] = 1
    masks = mask.view(rows, 4, columns, 4).transpose(1, 2).reshape(-1, 4, 4)
    thumbnail = torch.linspace(0, 1, 3 * 28 * 28, dtype=torch.float64).view(1, 3, 28, 28)
    return {
        "image_pixel_values": torch.cat([thumbnail, cut])[None],
        "image_sizes": torch.tensor([[rows * 28, columns * 28]]),
        "image_attention_mask": torch.cat([torch.ones(1, 4, 4), masks])[None],
    }


@torch.no_grad()
def test_a_token_of_phi_4_is_where_its_pixels_are():
    """Oracle: one cell of the picture, or of its thumbnail, made bright. Rows end in newlines, one stands between."""
    model, generator = apart("phi4_multimodal"), torch.Generator().manual_seed(0)
    pixels = torch.rand(56, 56, 3, generator=generator, dtype=torch.float64)
    inputs = phi4_picture(pixels, (2, 2), (6, 8))
    high, wide = 3, 4
    n = high * (wide + 1) + 1 + 2 * 3
    prompt = {"input_ids": torch.tensor([[1, 5, *[tiny.IMAGE] * n, 7]])}
    with vtprune.pruned(model, "none") as report:
        model(**prompt, **inputs)
        (source,) = report.last.layout.rows[0].sources
    assert source.grids == ((1, 2, 2), (1, 3, 4)) and source.crops == (2, 2) and len(source) == n
    layer, caught = tiny.text_model(model).layers[0], []
    hook = layer.register_forward_pre_hook(lambda m, args, kwargs: caught.append(args[0]), with_kwargs=True)
    model(**prompt, **inputs)
    cells = [(1, y, x) for y in range(high) for x in range(wide)] + [(0, y, x) for y in range(2) for x in range(2)]
    for view, y, x in cells:
        # the crops follow the thumbnail, two side by side
        crop = 0 if view == 0 else 1 + y // 2 * 2 + x // 2
        y_in, x_in = (y % 2 * 14, x % 2 * 14)
        changed = inputs["image_pixel_values"].clone()
        changed[0, crop, :, y_in : y_in + 14, x_in : x_in + 14] += 1
        model(**prompt, **{**inputs, "image_pixel_values": changed})
        (column,) = (caught[-1] != caught[0])[0].any(-1).nonzero().flatten().tolist()
        assert source.coords[column - 2].tolist() == [view, 0, y, x]
    hook.remove()
    assert source.patch.sum() == len(cells) and bool((source.coords[~source.patch] == -1).all())


def test_gemma_3n_has_square_grids():
    model = model_of("gemma3n")
    with vtprune.pruned(model, "uniform", keep_ratio=0.5) as report:
        tiny.greedy(model, tiny.batch("gemma3n", "one", torch.float32), 1)
        (kept,) = report.kept()
    assert kept.grids == ((1, 4, 4),) and kept.of == 16 and len(kept.coords) == 8


# --------------------------------------------------------------------------------------------- signals of the tower


@contextmanager
def spied(module: nn.Module):
    """The queries, keys and masks that an attention module compares, from its own projections and norms."""
    seen, inside = [], [False]

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func is nn.functional.scaled_dot_product_attention and inside[0]:
                seen.append((args[0], args[1], kwargs.get("attn_mask"), kwargs.get("is_causal"), kwargs.get("scale")))
            return func(*args, **kwargs)

    enter = module.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    leave = module.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    with Spy():
        yield seen
    enter.remove()
    leave.remove()


def softmaxes(seen) -> Tensor:
    """(tiles, heads, Q, K) softmax of each call, computed in full."""
    ((query, key, mask, causal, scale),) = seen
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def looked(family: str, inputs, *needs):
    model, look = model_of(family), Look(BEFORE_LLM, *needs)
    with vtprune.pruned(model, look), spied(family_of(model).vision_layers(model)[-1]) as seen, torch.no_grad():
        model(**inputs)
    return look.seen, softmaxes(seen)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_scores_of_gemma_4_s_tower_are_means_over_the_patches_of_a_token(kind):
    """Oracle: softmaxes of the tower in full, means over real patches, block by block by the places of the patches."""
    batch = tiny.batch("gemma4", "ragged", torch.float32) if kind == "image" else tiny.video("gemma4", "ragged")
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    seen, weights = looked("gemma4", inputs, ATTENTION)
    where = inputs[f"{kind}_position_ids"]
    expected = []
    for weight, place in zip(weights, where, strict=True):
        real = (place >= 0).all(-1)
        column = weight.mean(0)[real].mean(0)
        wide, high = (place.amax(0) + 1).tolist()
        for y in range(high // 2):
            for x in range(wide // 2):
                own = (place // 2 == torch.tensor([x, y])).all(-1) & real
                assert int(own.sum()) == 4
                expected.append(column[own].mean())
    got = torch.cat([found[ATTENTION] for _, found in seen])
    torch.testing.assert_close(got, torch.stack(expected).float(), atol=1e-6, rtol=1e-5)
    assert got.std() > 1e-5


@pytest.mark.parametrize("padded", [True, False])
def test_scores_of_phi_4_s_tower_take_the_way_of_its_crops(padded):
    """Oracle: softmaxes in full, and places cell by cell. Without padding this tower is causal (transformers 5.23)."""
    pixels = torch.rand(28, 56, 3, generator=torch.Generator().manual_seed(0))
    inputs = phi4_picture(pixels.double(), (1, 2), (4, 6 if padded else 8))
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    wide = 3 if padded else 4
    n = 2 * (wide + 1) + 1 + 2 * 3
    seen, weights = looked("phi4_multimodal", {**inputs, "input_ids": torch.tensor([[1, *[100] * n, 7]])}, ATTENTION)
    assert weights.shape[0] == 3 and bool(weights[0, 0, 0, 1:].any()) == padded
    ((tokens, found),) = seen
    for (view, _, y, x), got in zip(tokens.coords.tolist(), found[ATTENTION].tolist(), strict=True):
        tile = 0 if view == 0 else 1 + x // 2
        mask = inputs["image_attention_mask"][0, tile].flatten().bool()
        rows = weights[tile].mean(0)[mask]
        # patches that no query sees count for the queries that see them
        seeing = (rows > 0).sum(0).clamp(min=1)
        column = rows.sum(0) / seeing
        cells = [4 * (2 * y + a) + 2 * (x % 2) + b for a in range(2) for b in range(2)]
        assert got == pytest.approx(float(column[cells].mean()), abs=1e-6)


@pytest.mark.parametrize("family", ["gemma4_unified", "gemma3n"])
def test_without_a_tower_that_attends_its_signals_are_refused(family):
    with pytest.raises(ValueError, match="vision tower with attention, and .* has none"):
        vtprune.wrap(model_of(family), "visionzip")
    vtprune.unwrap(vtprune.wrap(model_of(family), "divprune", keep_ratio=0.5))


# ------------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("family", ["gemma4_moe", "mistral3_m4", "mistral3_ministral3", "phi4_multimodal"])
def test_decoder_and_cache_equal_the_counter(family):
    """Gemma 4's layers differ in heads, and experts stand beside their MLP."""
    decoder_equals_the_counter(family)


@torch.no_grad()
@pytest.mark.parametrize("need", ["last_query_attention", "text_attention:peek"])
def test_signals_of_layers_that_differ_are_counted(need):
    """Oracle: torch's counter; the layer that is looked at has keys for values, and larger heads than the first."""
    model, inputs = model_of("gemma4_moe"), tiny.batch("gemma4_moe", "one", torch.float32)
    site = 1 if need.endswith("peek") else 2

    def total(*needs):
        with vtprune.pruned(model, Look(site, *needs)) as report:
            return counted(count(lambda: model(**inputs, logits_to_keep=1))).total, report.flops_selector.total

    plain, nothing = total()
    looked_at, selector = total(need)
    assert nothing == 0 and looked_at - plain == selector > 0


COUNTS = ("gemma4", "gemma4_shared", "gemma4_unified", "gemma3n", "ernie4_5_vl_moe", "phi4_multimodal", "gemma4_moe")


@torch.no_grad()
@pytest.mark.parametrize("family", COUNTS)
def test_the_report_counts_what_is_stored_and_refuses_what_it_cannot_count(family):
    """Oracle: the cache itself. Layers without keys of their own store nothing."""
    model, inputs = model_of(family), tiny.batch(family, "one", torch.float32)
    config = tiny.text_model(model).config
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        held = model(**inputs, use_cache=True).past_key_values
        stored = [layer for layer in held.layers if layer.keys is not None]
        nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in stored)
        assert report.kv_bytes == report.kv_bytes_predicted == nbytes < report.kv_bytes_unpruned
        assert f"{nbytes:,} bytes measured" in str(report) and report.kept()
        if family in ("gemma3n", "phi4_multimodal"):
            with pytest.raises(NotImplementedError, match="vision FLOPs are unknown"):
                _ = report.flops_vision
        else:
            assert report.flops_vision.linear > 0
        if family not in ("phi4_multimodal", "gemma4_moe"):
            with pytest.raises(NotImplementedError, match="num_kv_shared|per_layer_input|num_experts"):
                _ = report.flops
            assert "Measure with torch.utils.flop_counter" in str(report)
    lengths = [len(inputs["input_ids"][0])] * config.num_hidden_layers
    assert report.kv_bytes_unpruned == kv_bytes(config, lengths, 4)


def test_dense_layers_that_differ_equal_the_counter():
    """Gemma 4 Unified without shared keys; oracle: torch's counter around its decoder."""
    kinds = ["sliding_attention", "full_attention"]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32}
    config = hf.Gemma4UnifiedTextConfig(**sizes, **heads, layer_types=kinds, sliding_window=16, pad_token_id=0)
    model = hf.Gemma4UnifiedTextModel(config).eval()
    with torch.no_grad():
        mine = decoder_flops(config, [9, 9])
        assert_same(mine, counted(count(lambda: model(input_ids=torch.arange(9)[None], use_cache=True))))
