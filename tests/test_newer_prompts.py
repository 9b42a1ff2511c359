"""What the families beyond the first 14 make of pictures, clips and sound: places, kinds and times of visual tokens."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import vtprune
from tests import oracle, tiny
from tests.newer.base import mostly_slow
from tests.newer.omni import AUDIO, AUDIO_END, AUDIO_START
from tests.probe import ByNorm, answer, visible
from vtprune import BEFORE_LLM
from vtprune.families.base import family_of

PICTURES = {
    "qwen3_vl_moe": "Qwen2VLImageProcessorPil",
    "qwen2_5_omni": "Qwen2VLImageProcessorPil",
    "qwen3_omni_moe": "Qwen2VLImageProcessorPil",
    "glm4v": "Glm4vImageProcessorPil",
    "glm46v": "Glm46VImageProcessorPil",
    "glm4v_moe": "Glm4vImageProcessorPil",
    "paddleocr_vl": "PaddleOCRVLImageProcessorPil",
    "video_llama_3": "VideoLlama3ImageProcessorPil",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeImageProcessorPil",
}
QWEN_LIKE = ("qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe", "glm4v", "glm46v", "glm4v_moe")


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32)


@cache
def apart(family: str):
    """A model in whose tower patches do not attend to each other: each token depends on its own pixels alone."""
    model = tiny.build(family, dtype=torch.float32)
    for attention in family_of(model).vision_layers(model):
        output = next(part for name, part in attention.named_children() if name in ("proj", "out_proj"))
        for parameter in output.parameters():
            torch.nn.init.zeros_(parameter)
    return model


def patch_of(family: str) -> int:
    return model_of(family).config.vision_config.patch_size


# --------------------------------------------------------------------------------- pixels as the processors lay them


def picture(family: str, pixels: np.ndarray) -> dict:
    """What the family's own processor makes of (H, W, 3) pixels that need no resizing."""
    processor = getattr(hf, PICTURES[family])
    size = {"shortest_edge": 14 * 14, "longest_edge": 28 * 28 * 64}
    made = processor(patch_size=patch_of(family), size=size)(images=[Image.fromarray(pixels)], return_tensors="pt")
    return dict(made)


def in_blocks(frames: torch.Tensor, patch: int, step: int) -> torch.Tensor:
    """(T, 3, H, W) -> (patches, 3 * step * patch * patch): the four patches of a token one after the other."""
    t, _, height, width = frames.shape
    parts = frames.view(t // step, step, 3, height // patch // 2, 2, patch, width // patch // 2, 2, patch)
    return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * step * patch * patch)


def in_rows(frames: torch.Tensor, patch: int) -> torch.Tensor:
    """(T, 3, H, W) -> (patches, 3, patch, patch): frame by frame, row by row."""
    t, _, height, width = frames.shape
    parts = frames.view(t, 3, height // patch, patch, width // patch, patch)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, patch, patch)


def clip(family: str, pixels: np.ndarray) -> dict:
    """(T, H, W, 3) pixels as the family's video processor hands them on; those need torchvision."""
    patch, frames = patch_of(family), torch.from_numpy(pixels / 127.5 - 1).float().permute(0, 3, 1, 2)
    t, grid = len(frames), [frames.shape[2] // patch, frames.shape[3] // patch]
    if family in QWEN_LIKE:
        made = {"pixel_values_videos": in_blocks(frames, patch, 2), "video_grid_thw": torch.tensor([[t // 2, *grid]])}
    elif family == "ernie4_5_vl_moe":
        made = {"pixel_values_videos": in_blocks(frames, patch, 1), "video_grid_thw": torch.tensor([[t, *grid]])}
    elif family == "video_llama_3":
        made = {"pixel_values_videos": in_blocks(frames, patch, 1), "video_grid_thw": torch.tensor([[t, *grid]])}
        made["video_merge_sizes"] = torch.tensor([2])
    else:
        made = {"pixel_values_videos": in_rows(frames, patch), "video_grid_thw": torch.tensor([[1, *grid]] * t)}
    return made


def kimi_picture(pixels: np.ndarray) -> dict:
    """As Kimi's image processor does, which needs torchvision."""
    made = clip("kimi_k25", pixels[None])
    return {"pixel_values": made["pixel_values_videos"], "image_grid_thw": made["video_grid_thw"]}


def encoded(family: str, kind: str, pixels: np.ndarray):
    """The features of all tokens, and of each its place: which source, view, frame, row and column."""
    model, known = apart(family), family_of(apart(family))
    images = kimi_picture if family == "kimi_k25" else lambda one: picture(family, one)
    arguments = images(pixels[0]) if kind == "image" else clip(family, pixels)
    with torch.no_grad():
        features = getattr(model.model, f"get_{kind}_features")(**arguments, return_dict=True).pooler_output
    sources = known.sources(model, kind, arguments, list(features))
    assert [len(source) for source in sources] == [len(feature) for feature in features]
    assert all(source.kind == kind and bool(source.patch.all()) for source in sources)
    places = [[i, *place] for i, source in enumerate(sources) for place in source.coords.tolist()]
    return torch.cat(list(features)), places


CASES = [(name, "image") for name in (*PICTURES, "kimi_k25")]
CASES += [(name, "video") for name in (*QWEN_LIKE, "video_llama_3", "kimi_k25", "ernie4_5_vl_moe")]


USUAL = [("qwen2_5_omni", "image"), ("glm4v", "image"), ("glm4v", "video"), ("qwen3_vl_moe", "video")]
USUAL += [(name, kind) for name in ("video_llama_3", "kimi_k25") for kind in ("image", "video")]
USUAL += [("paddleocr_vl", "image")]


@pytest.mark.parametrize(("family", "kind"), mostly_slow(CASES, USUAL))
def test_a_token_is_where_its_pixels_are(family, kind):
    """Oracle: the pixels of one place are inverted; as patches do not attend to each other, one token changes."""
    step = 2 if family in (*QWEN_LIKE, "ernie4_5_vl_moe") and kind == "video" else 1
    # VideoLLaMA 3 joins patches in clips alone
    side = patch_of(family) * (1 if (family, kind) == ("video_llama_3", "image") else 2)
    t, h, w = (1, 3, 5) if kind == "image" else (2, 2, 3)
    pixels = np.random.default_rng(3).integers(0, 256, (t * step, h * side, w * side, 3), dtype=np.uint8)
    plain, places = encoded(family, kind, pixels)
    assert len(places) == t * h * w
    for i, y, x in {(0, 0, 1), (t - 1, h - 1, 0), (0, 1, w - 1)}:
        changed = pixels.copy()
        changed[i * step : (i + 1) * step, y * side : (y + 1) * side, x * side : (x + 1) * side] ^= 255
        (token,) = (encoded(family, kind, changed)[0] - plain).norm(dim=1).nonzero().flatten().tolist()
        # the chunks of a clip of Kimi's are sources of their own
        assert places[token] == ([i, 0, 0, y, x] if family == "kimi_k25" else [0, 0, i, y, x])


# ------------------------------------------------------------------------------------------------------- whole prompts


def test_frames_at_the_placeholders_of_images_are_a_video():
    """GLM's clips; oracle: their grids and the times that were told, by hand. Images stay images."""
    model = model_of("glm4v_moe")
    clips, images = (made("glm4v_moe", "ragged", torch.float32) for made in (tiny.video, tiny.batch))
    with vtprune.pruned(model, "none") as report:
        with vtprune.frame_times([[0.0, 1.0, 4.0, 5.0], [2.0, 3.0]]):
            answer(model, clips, 1)
        (first,), (second,) = report.kept(0), report.kept(1)
        assert (first.kind, first.grids, second.grids) == ("video", ((2, 2, 4),), ((1, 2, 4),))
        assert (first.seconds.tolist(), second.seconds.tolist()) == ([0.5, 4.5], [2.5])
        assert first.coords.tolist() == [[0, t, y, x] for t in range(2) for y in range(2) for x in range(4)]
        answer(model, images, 1)
        assert [one.kind for one in report.kept(1)] == ["image", "image"]


def test_the_steps_of_a_clip_of_a_thinker_have_times():
    """Oracle: a second and a half from step to step, as the processor says."""
    model, inputs = model_of("qwen3_omni_moe"), tiny.video("qwen3_omni_moe", "ragged", torch.float32)
    with vtprune.pruned(model, "none") as report, torch.no_grad():
        model(**inputs)
        assert [report.kept(b)[0].seconds.tolist() for b in range(2)] == [[0.0, 1.5], [0.0]]


def with_sound(family: str) -> tiny.Batch:
    """One prompt: words, half a second of sound, words, an image, words."""
    frames, tokens = 100, 25 if family == "qwen2_5_omni" else 13
    sound = tiny.Sample((AUDIO_START, *[AUDIO] * tokens, AUDIO_END))
    sample = tiny.words(3, 1) + sound + tiny.words(2, 2) + tiny.NEWER[family].image("large", 5) + tiny.words(4, 3)
    inputs = tiny.collate(family, [sample])
    generator = torch.Generator().manual_seed(0)
    inputs["input_features"] = torch.randn(1, 16, frames, generator=generator, dtype=torch.float64)
    inputs["feature_attention_mask"] = torch.ones(1, frames, dtype=torch.long)
    return inputs


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_sound_is_text(family):
    """Oracle: masked columns at full length; only the image's 16 tokens are offered, those of the sound all stay."""
    model, inputs = tiny.build(family), with_sound(family)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2))) as report:
        got, kept = answer(model, inputs), visible(model)
        assert report.tokens == [(16, 4)]
    assert bool(kept[2][inputs["input_ids"] == AUDIO].all())
    with oracle.MaskedColumns(model, kept):
        expected = answer(model, inputs)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(torch.stack(got[1]), torch.stack(expected[1]), atol=1e-9, rtol=0)
    silent = {**inputs, "input_features": torch.zeros_like(inputs["input_features"])}
    assert not torch.allclose(answer(model, silent)[1][0], answer(model, inputs)[1][0])


def test_a_model_that_also_speaks_is_wrapped_where_it_sees():
    """Oracle: the same weights as a thinker of its own."""
    thinker, inputs = tiny.build("qwen2_5_omni"), tiny.batch("qwen2_5_omni", "one")
    whole = hf.Qwen2_5OmniForConditionalGeneration(
        hf.Qwen2_5OmniConfig(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    )
    # speakers come with a checkpoint, and generate asks the talker for a token even if it is to be silent
    whole.thinker, whole.speaker_map, whole.talker = thinker, {"Chelsie": None}, SimpleNamespace(codec_pad_token=0)
    for strict in (True, False):
        with pytest.raises(NotImplementedError, match=r"vtprune.wrap\(model.thinker, ...\)"):
            vtprune.wrap(whole, "random", strict=strict)
    with vtprune.pruned(whole.thinker, ByNorm((BEFORE_LLM, 2))) as report:
        said = whole.generate(**inputs, thinker_max_new_tokens=4, thinker_min_new_tokens=4, generation_mode="text")
        assert report.prefills == 1 and report.tokens == [(16, 4)]
        expected = tiny.greedy(thinker, inputs, 4).sequences
        with pytest.raises(NotImplementedError, match='generation_mode="text"'):
            thinker.generate(**inputs, max_new_tokens=2, output_hidden_states=True)
    assert torch.equal(said, expected)
