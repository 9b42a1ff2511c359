"""Batches for the tiny models of 14 families, made of single samples, and short ways to run them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.newer import NEWER
from tests.release import as_named
from tests.tiny_models import FAMILIES, MROPE_FAMILIES, base_model, build, text_model
from tests.tiny_parts import BOS, END, EOS, IMAGE, PAD, START, VIDEO, Sample, cat_padded, words

__all__ = ["BOS", "END", "EOS", "FAMILIES", "IMAGE", "MROPE_FAMILIES", "NEWER", "PAD", "START", "VIDEO", "build"]
__all__ += ["Batch", "Sample", "base_model", "text_model"]

KINDS = ("one", "padded", "ragged", "ragged_unpadded", "text_row", "two_images")
VIDEO_FAMILIES = ("llava_next_video", "llava_onevision", *MROPE_FAMILIES, "internvl", "video_llava")


class Batch(dict):
    """Model inputs that remember the samples they were made of."""

    family: str
    samples: tuple[Sample, ...]


def _anyres_count(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Tiles and tokens of an image whose (height, width) is one of the pinpoints; ``side`` patches per tile edge."""
    tiles_high, tiles_wide = size[0] // 28, size[1] // 28
    return 1 + tiles_high * tiles_wide, side * side + tiles_high * side * (tiles_wide * side + 1)


def _image(family: str, size: str, seed: int, alone: bool = True) -> Sample:
    """One image: placeholders and pixels. size: "large" or "small" where the family has sizes. alone: no other one."""
    if family in NEWER:
        return NEWER[family].image(size, seed)
    generator, large = torch.Generator().manual_seed(seed), size == "large"

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if family in MROPE_FAMILIES:
        grid = (1, 8, 8) if large else (1, 4, 8)
        n = grid[1] * grid[2] // 4
        pixels = {"pixel_values": noise(n * 4, 3 * 2 * 14**2), "image_grid_thw": torch.tensor([grid])}
    elif family == "mistral3":
        height, width = (56, 56) if large else (28, 56)
        n = height * width // 14**2
        pixels = {"pixel_values": noise(1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    elif family in ("llava_next", "llava_next_video", "llava_onevision"):
        shape = (28, 56) if large else (28, 28)
        tiles, n = _anyres_count(shape, 2 if family == "llava_next" else 4)
        if family == "llava_onevision" and not alone:  # several images in one prompt: one tile each and one newline
            tiles, n = 1, 17
        pixels = {"pixel_values": noise(1, tiles, 3, 28, 28), "image_sizes": torch.tensor([shape])}
    elif family in ("idefics3", "smolvlm"):
        n, pixels = 16, {"pixel_values": noise(1, 1, 3, 56, 56)}
    else:
        n, pixels = (
            16,
            {"pixel_values": noise(1, 3, 56, 56) if family in ("internvl", "gemma3") else noise(1, 3, 28, 28)},
        )
    return Sample((START, *[IMAGE] * n, END), pixels)


def _clip(family: str, frames: int, seed: int) -> Sample:
    """One video of ``frames`` frames as placeholders and pixels."""
    if family in NEWER:
        return NEWER[family].clip(frames, seed)
    noise = torch.randn(frames, 3, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if family in MROPE_FAMILIES:  # two frames make one temporal patch, (4, 8) patches merge into (2, 4) tokens
        steps = frames // 2
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(steps * 32, 3 * 2 * 14**2, generator=generator, dtype=torch.float64)
        pixels = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([[steps, 4, 8]])}
        if family != "qwen3_vl":
            return Sample((START, *[VIDEO] * 8 * steps, END), pixels)
        runs = [(*words(2, seed + step).ids, START, *[VIDEO] * 8, END) for step in range(steps)]  # words: a time stamp
        return Sample(tuple(token for run in runs for token in run), pixels)
    if family == "internvl":  # the frames of a video are images, each after a few words
        out = Sample(())
        for frame in range(frames):
            out = out + words(2, seed + frame) + _image(family, "large", seed + frame)
        return out
    n = {"llava_next_video": 4 * frames, "llava_onevision": 4 * frames + 1, "video_llava": 17 * frames}[family]
    return Sample((START, *[VIDEO] * n, END), {"pixel_values_videos": noise[None]})


def _sample(family: str, sizes: tuple[str, ...], text: int, seed: int) -> Sample:
    """BOS, three words, each image of ``sizes`` with a word after it, ``text`` more words."""
    out = Sample((BOS,)) + words(3, seed)
    for i, size in enumerate(sizes):
        out = out + _image(family, size, 100 * seed + i, alone=len(sizes) == 1) + words(1, 50 + seed + i)
    if family in ("idefics3", "smolvlm"):  # images lie on dim 1 of a row of their own
        pixels = out.pixels.get("pixel_values", torch.zeros(0, 1, 3, 56, 56, dtype=torch.float64))
        out = Sample(out.ids, {"pixel_values": pixels.transpose(0, 1)})
    return out + words(text, 90 + seed)


def samples(family: str, kind: str = "ragged") -> list[Sample]:
    """The samples of a batch, kind in ``KINDS``; each image and each text is different.

    one: a single sample. padded: equal visual counts, unequal lengths. ragged: unequal visual counts and lengths.
    ragged_unpadded: unequal visual counts, equal lengths. text_row: the second has no image. two_images: one sample.
    """
    one = _sample(family, ("large",), 6, 1)
    two = _sample(family, ("small", "large"), 7, 2)
    if kind == "one":
        return [one]
    if kind == "padded":
        return [one, _sample(family, ("large",), 10, 3)]
    if kind == "ragged":
        return [one, two]
    if kind == "ragged_unpadded":
        short, long = sorted((one, two), key=lambda s: len(s.ids))
        return [short + words(len(long.ids) - len(short.ids), 7), long]
    if kind == "text_row":
        return [one, _sample(family, (), 9, 4)]
    if kind == "two_images":
        return [two]
    raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")


def video_samples(family: str, kind: str = "ragged") -> list[Sample]:
    """Samples with a video each.

    one: a single sample. padded: equal visual counts. ragged: unequal numbers of frames where a batch may have them.
    with_image: a video before an image, then an image before a video.
    """
    newer = family in NEWER and NEWER[family].clip is not None
    free = NEWER[family].free if newer else family in (*MROPE_FAMILIES, "internvl")
    if not newer and family not in VIDEO_FAMILIES:
        raise ValueError(f"{family!r} has no video here; the families with video: {', '.join(VIDEO_FAMILIES)}")

    def make(frames: int, text: int, seed: int) -> Sample:
        return Sample((BOS,)) + words(3, seed) + _clip(family, frames, 10 * seed) + words(text, 90 + seed)

    one = make(4, 6, 1)
    if kind == "one":
        return [one]
    if kind == "padded" or (kind == "ragged" and not free):
        return [one, make(4, 9, 2)]
    if kind == "ragged":
        return [one, make(2, 9, 2)]
    if kind == "with_image":
        image, start = (_image(family, "large", 40 + i) + words(2, i) for i in range(2)), Sample((BOS,)) + words(3, 5)
        clips = [_clip(family, 4, 60 + i) + words(4, 70 + i) for i in range(2)]
        return [start + clips[0] + next(image), start + next(image) + clips[1] + words(3, 9)]
    raise ValueError(f"unknown kind {kind!r} for video; known: one, padded, ragged, with_image")


ORDERS = ("viv", "vvi", "ivv")


def mixed_samples(family: str, orders: tuple[str, ...] = ORDERS) -> list[Sample]:
    """A sample for each order of images (i), videos of 4 frames (v) and, where lengths are free, of 2 frames (w)."""
    out = []
    for seed, order in enumerate(orders):
        sample = Sample((BOS,)) + words(3, 400 + seed)
        for place, kind in enumerate(order):
            number = 10 * (10 * seed + place) + 5000
            if kind == "i":
                sample = sample + _image(family, "large", number, alone=order.count("i") == 1)
            else:
                sample = sample + _clip(family, {"v": 4, "w": 2}[kind], number)
            sample = sample + words(1 + place, number)
        out.append(sample + words(4 + seed, 450 + seed))
    return out


def collate(family: str, parts: list[Sample] | tuple[Sample, ...], dtype: torch.dtype = torch.float64) -> Batch:
    """Left-padded model inputs of several samples."""
    length = max(len(s.ids) for s in parts)
    pads = [length - len(s.ids) for s in parts]
    out = Batch(
        input_ids=torch.tensor([[PAD] * p + list(s.ids) for p, s in zip(pads, parts)]),
        attention_mask=torch.tensor([[0] * p + [1] * len(s.ids) for p, s in zip(pads, parts)]),
    )
    out.update(_token_types(family, out["input_ids"]))
    for key in dict.fromkeys(k for s in parts for k in s.pixels):
        tensor = cat_padded([s.pixels[key] for s in parts if key in s.pixels])
        if tensor.numel():
            out[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if family == "llava_onevision" and "image_sizes" in out:
        counts = [len(s.pixels["image_sizes"]) if "image_sizes" in s.pixels else 0 for s in parts]
        out["batch_num_images"] = torch.tensor(counts)
    if family in NEWER:
        out.update(NEWER[family].arrange(out))
    if family == "video_llava":
        out = Batch(as_named(hf.VideoLlavaForConditionalGeneration.forward, out))
    out.family, out.samples = family, tuple(parts)
    return out


def _token_types(family: str, ids: Tensor) -> dict[str, Tensor]:
    if family in NEWER:
        return NEWER[family].types(ids)
    if family in MROPE_FAMILIES:
        return {"mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).int()}
    if family == "gemma3":
        return {"token_type_ids": (ids == IMAGE).long()}
    return {"token_type_ids": torch.zeros_like(ids)} if family == "paligemma" else {}  # 0: all of it is the prefix


def batch(family: str, kind: str = "ragged", dtype: torch.dtype = torch.float64) -> Batch:
    """Model inputs of ``samples(family, kind)``."""
    return collate(family, samples(family, kind), dtype)


def video(family: str, kind: str = "ragged", dtype: torch.dtype = torch.float64) -> Batch:
    """Model inputs of ``video_samples(family, kind)``."""
    return collate(family, video_samples(family, kind), dtype)


def row(inputs: Batch, i: int) -> Batch:
    """The i-th sample of a batch alone: unpadded, with its own pixels."""
    floats = [v.dtype for v in inputs.values() if v.is_floating_point()]
    return collate(inputs.family, inputs.samples[i : i + 1], *floats[:1])


def visual(inputs: dict[str, Tensor]) -> Tensor:
    """(B, L) bool: the placeholders of images and videos."""
    return (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)


# --------------------------------------------------------------------------------------------------- running


def greedy(model: nn.Module, inputs: dict[str, Any], n: int = 8, **more: Any) -> Any:
    """``generate`` without sampling: ``.sequences``, ``.logits`` (n times (B, V), unprocessed), ``.past_key_values``.

    A prompt of length L comes first in ``.sequences``; placeholders are never generated, nor is
    the end of the sequence unless ``min_new_tokens`` is given.
    """
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        return model.generate(**inputs, **{**settings, **more})


def beams(model: nn.Module, inputs: dict[str, Any], n: int = 8, num_beams: int = 3, **more: Any) -> Any:
    """Beam search: ``.sequences``, ``.sequences_scores``, ``.past_key_values``."""
    return greedy(model, inputs, n, num_beams=num_beams, output_scores=True, **more)


def new_turn(family: str, model: nn.Module, inputs: Batch, sequences: Tensor, image: bool, clip: bool = False) -> Batch:
    """Inputs of a second turn on the cache of the first: the whole conversation's ids, the pixels of what is new only.

    sequences: (B, L + n), what the first turn returned for ``inputs``. Pass the first turn's ``past_key_values`` along.
    """
    start, tails = inputs["input_ids"].shape[1], []
    for i in range(len(sequences)):
        fresh = _image(family, "small", 7000 + i) if image else Sample(())
        fresh = fresh + _clip(family, 4, 7100 + i) if clip else fresh
        tails.append(fresh + words(5, 300 + i))
    told = [s + Sample(tuple(new.tolist())) for s, new in zip(inputs.samples, sequences[:, start:])]
    dtype = next((v.dtype for v in inputs.values() if v.is_floating_point()), torch.float64)
    out = collate(family, [old + tail for old, tail in zip(told, tails)], dtype)
    old_mask = inputs["attention_mask"]
    out["attention_mask"] = nn.functional.pad(old_mask, (0, out["input_ids"].shape[1] - start), value=1)
    new, told_again = (
        collate(family, tails, dtype),
        {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"},
    )
    for key in out.keys() - told_again:
        del out[key]
    out.update({key: value for key, value in new.items() if key not in told_again})
    # positions need the grids of ALL, the encoder only the new ones; before 5.23 positions of new ones are text's
    placed = has_mrope(family) and "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if placed and any("grid" in key for key in inputs) and (image or clip):
        out["mm_encoder_outputs"] = {}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            grid, encode = f"{kind}_grid_thw", getattr(base_model(model), f"get_{kind}_features")
            if pixels in out:
                with torch.no_grad():
                    out["mm_encoder_outputs"][kind] = encode(out.pop(pixels), out[grid], return_dict=True)
            grids = [s.pixels[grid] for s in out.samples if grid in s.pixels]
            if grids:
                out[grid] = torch.cat(grids)
    return out


def has_mrope(family: str) -> bool:
    """Whether positions have time, height and width."""
    return family in MROPE_FAMILIES or (family in NEWER and NEWER[family].mrope)


def tolerance(family: str) -> float:
    """Of logits against an oracle in float64."""
    return NEWER[family].tolerance if family in NEWER else 1e-9
