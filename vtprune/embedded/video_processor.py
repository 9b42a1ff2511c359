"""The video model's processor: from frames and text to the inputs of a Qwen3-VL, without torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from vtprune.embedded.clips import SIDE
from vtprune.embedded.slices import patches_of
from vtprune.embedded.video_architecture import MERGE, build_tokenizer

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedTokenizerFast

PLACEHOLDER, START, END = "<video>", "<vision_start>", "<vision_end>"
VIDEO_KIND = 2  # in ``mm_token_type_ids``; text is 0


class ClipProcessor:
    """Turns prompts with ``<video>`` in them, and clips, into model inputs; a clip's slices are marked one by one.

    As Qwen3-VL's own processor, but frames are brought to ``SIDE`` x ``SIDE`` pixels, and no time stamps are written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None):
        self.tokenizer = tokenizer or build_tokenizer()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ClipProcessor:
        """With the tokenizer saved in a folder."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def apply_chat_template(self, conversation: list[dict], *, add_generation_prompt: bool = False) -> str:
        """The prompt of a conversation whose content parts are {"type": "video"} and {"type": "text", "text": ...}."""
        return self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def __call__(self, text: str | Sequence[str], videos: object = None) -> BatchFeature:
        """``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (B, L), padded on the left; with clips, too,
        ``pixel_values_videos`` (patches, C) and ``video_grid_thw`` (clips, 3).

        text:   a prompt or several.
        videos: a clip or a list of clips, in the order of the ``<video>`` in the prompts. A clip is (T, H, W, 3) uint8
                or a list of frames, pictures or (H, W, 3) uint8 arrays.
        """
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text)
        clips = list(_clips(videos))
        asked = sum(prompt.count(PLACEHOLDER) for prompt in texts)
        if asked != len(clips):
            raise ValueError(f"the text has {asked} {PLACEHOLDER} but {len(clips)} clips were given; give one for each")
        parts = [patches_of(frames) for frames in clips]
        grids = iter([grid for _, grid in parts])
        texts = [_spell_out(prompt, grids) for prompt in texts]
        data = dict(self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
        video = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        data["mm_token_type_ids"] = VIDEO_KIND * (data["input_ids"] == video).int()
        if parts:
            data["pixel_values_videos"] = torch.cat([patches for patches, _ in parts])
            data["video_grid_thw"] = torch.tensor([grid for _, grid in parts])
        return BatchFeature(data)

    def decode(self, ids: torch.Tensor, *, skip_special_tokens: bool = False) -> str:
        """The text of (L,) token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, ids: torch.Tensor, *, skip_special_tokens: bool = False) -> list[str]:
        """The texts of (B, L) token ids."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)


def _spell_out(prompt: str, grids: Iterator[tuple[int, int, int]]) -> str:
    """The prompt with each ``<video>`` replaced by its slices: start, one placeholder per visual token, end."""
    first, *others = prompt.split(PLACEHOLDER)
    for part in others:
        t, h, w = next(grids)
        first += (START + PLACEHOLDER * (h * w // MERGE**2) + END) * t + part
    return first


def _clips(videos: object) -> Iterator[np.ndarray]:
    """Each clip as (T, SIDE, SIDE, 3) uint8."""
    if videos is None:
        return
    if not isinstance(videos, (list, tuple)) or isinstance(videos[0], Image.Image) or np.ndim(videos[0]) == 3:
        videos = [videos]
    for clip in videos:
        frames = [_picture(frame) for frame in clip]
        if not frames:
            raise ValueError("a clip has no frames; give at least one")
        yield np.stack(frames)


def _picture(frame: object) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    if not isinstance(frame, Image.Image):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is (H, W, 3) uint8 or a picture; got {frame.shape} {frame.dtype}")
        frame = Image.fromarray(frame)
    frame = frame.convert("RGB")
    if frame.size != (SIDE, SIDE):
        frame = frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(frame)
