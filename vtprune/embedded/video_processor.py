"""The video model's processor: from frames and text to the inputs of a Qwen3-VL, without torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vtprune.embedded.clips import SIDE
from vtprune.embedded.slices import patches_of
from vtprune.embedded.video_architecture import MERGE, build_tokenizer

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedTokenizerFast

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}
PIXELS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
KINDS = {"image": 1, "video": 2}  # in ``mm_token_type_ids``; text is 0
START, END = "<vision_start>", "<vision_end>"


@dataclass(frozen=True)
class FrameShape:
    """What a frame or picture is brought to: (height, width) in pixels, whatever its aspect was."""

    size: tuple[int, int] = (SIDE, SIDE)


class ClipProcessor:
    """Turns prompts with ``<video>`` and ``<image>`` in them, clips and pictures, into model inputs.

    As Qwen3-VL's own processor, but frames are brought to ``SIDE`` x ``SIDE`` pixels, and no time stamps are written
    between the slices of a clip, which are marked one by one. A picture is one slice.
    """

    image_token, video_token = PLACEHOLDERS["image"], PLACEHOLDERS["video"]
    image_processor = video_processor = FrameShape()

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None):
        self.tokenizer = tokenizer or build_tokenizer()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ClipProcessor:
        """With the tokenizer saved in a folder."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    @property
    def chat_template(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    def apply_chat_template(
        self, conversation: list[dict], *, add_generation_prompt: bool = False, tokenize: bool = False
    ) -> str:
        """The prompt of a conversation whose content parts are {"type": "video"}, {"type": "image"} and
        {"type": "text", "text": ...}. Raises ValueError for ``tokenize``: the processor itself makes the tokens.
        """
        if tokenize:
            raise ValueError("tokenize=True is not supported; give the returned prompt to the processor")
        return self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def __call__(
        self,
        text: str | Sequence[str],
        videos: object = None,
        *,
        images: object = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        add_special_tokens: bool = False,
        do_sample_frames: bool = False,
        video_metadata: Any = None,
    ) -> BatchFeature:
        """``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (B, L), padded on the left; with clips, too,
        ``pixel_values_videos`` (patches, C) and ``video_grid_thw`` (clips, 3), with pictures ``pixel_values`` and
        ``image_grid_thw``.

        text:   a prompt or several.
        videos: a clip or a list of clips, in the order of the ``<video>`` in the prompts. A clip is (T, H, W, 3) uint8
                or a list of frames, pictures or (H, W, 3) uint8 arrays.
        images: a picture or a list of them, or of lists of them, in the order of the ``<image>``; as a frame.
        The other arguments are those of stock processors. Nothing else is done for ``add_special_tokens``, which the
        template wrote, and ``video_metadata``, of which nothing is told to the model.
        Raises ValueError for placeholders without a clip or picture, or the other way round, for what is no frame, and
        for other values of ``return_tensors``, ``padding_side`` and ``do_sample_frames``.
        """
        from transformers import BatchFeature

        _check(return_tensors=return_tensors, padding_side=padding_side, do_sample_frames=do_sample_frames)
        texts = [text] if isinstance(text, str) else list(text)
        given = {"video": list(_clips(videos)), "image": list(_pictures(images))}
        parts, grids = {}, {}
        for kind, clips in given.items():
            asked = sum(prompt.count(PLACEHOLDERS[kind]) for prompt in texts)
            if asked != len(clips):
                what = "clips" if kind == "video" else "pictures"
                raise ValueError(
                    f"the text has {asked} {PLACEHOLDERS[kind]} but {len(clips)} {what} were given; give one for each"
                )
            parts[kind] = [patches_of(frames) for frames in clips]
            grids[kind] = iter([grid for _, grid in parts[kind]])
        for kind, placeholder in PLACEHOLDERS.items():
            texts = [_spell_out(prompt, placeholder, grids[kind]) for prompt in texts]
        data = dict(self.tokenizer(texts, padding=padding, return_tensors="pt", return_token_type_ids=False))
        data["mm_token_type_ids"] = torch.zeros_like(data["input_ids"], dtype=torch.int32)
        for kind, (pixels, grid) in PIXELS.items():
            data["mm_token_type_ids"][data["input_ids"] == self._id(kind)] = KINDS[kind]
            if parts[kind]:
                data[pixels] = torch.cat([patches for patches, _ in parts[kind]])
                data[grid] = torch.tensor([grid for _, grid in parts[kind]])
        return BatchFeature(data)

    def _id(self, kind: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(PLACEHOLDERS[kind])

    def decode(self, ids: torch.Tensor, *, skip_special_tokens: bool = False) -> str:
        """The text of (L,) token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, ids: torch.Tensor, *, skip_special_tokens: bool = False) -> list[str]:
        """The texts of (B, L) token ids."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)


def _check(**given: object) -> None:
    """Raises ValueError for options of stock processors that this one does not have."""
    only = {"return_tensors": ("pt",), "padding_side": ("left",), "do_sample_frames": (False, None)}
    for name, value in given.items():
        if value not in only[name]:
            raise ValueError(f"{name} is {only[name][0]!r} for this processor; got {value!r}")


def _spell_out(prompt: str, placeholder: str, grids: Iterator[tuple[int, int, int]]) -> str:
    """The prompt with each placeholder replaced by its slices: start, one placeholder per visual token, end."""
    first, *others = prompt.split(placeholder)
    for part in others:
        t, h, w = next(grids)
        first += (START + placeholder * (h * w // MERGE**2) + END) * t + part
    return first


def _clips(videos: object) -> Iterator[np.ndarray]:
    """Each clip as (T, SIDE, SIDE, 3) uint8."""
    if videos is None:
        return
    if not isinstance(videos, (list, tuple)) or (videos and (_is_picture(videos[0]) or np.ndim(videos[0]) == 3)):
        videos = [videos]
    for clip in videos:
        frames = [_picture(frame) for frame in clip]
        if not frames:
            raise ValueError("a clip has no frames; give at least one")
        yield np.stack(frames)


def _pictures(images: object) -> Iterator[np.ndarray]:
    """Each picture as (1, SIDE, SIDE, 3) uint8."""
    if images is None:
        return
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _pictures(image)
        return
    yield _picture(images)[None]


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image)


def _picture(frame: object) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    if not _is_picture(frame):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is (H, W, 3) uint8 or a picture; got {frame.shape} {frame.dtype}")
        frame = Image.fromarray(frame)
    frame = frame.convert("RGB")
    if frame.size != (SIDE, SIDE):
        frame = frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(frame)
