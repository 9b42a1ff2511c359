"""Real processors of video models whose video half is a plain stand-in, because theirs needs torchvision."""

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import make_batched_metadata

from tests import tiny
from tests.model_folder import numbered_words

SIDE, PATCH, MERGE, SLICE = 56, 14, 2, 2
MEAN, STD = [0.4, 0.45, 0.5], [0.25, 0.3, 0.35]


class PlainVideos(BaseVideoProcessor):
    """Resizes each frame of the videos that come in to 56 x 56; nothing is chosen among them.

    flat: patches as Qwen-VL takes them, 4 visual tokens for two frames; otherwise (videos, T, 3, H, W).
    """

    merge_size, temporal_patch_size, patch_size = MERGE, SLICE, PATCH
    image_mean, image_std, do_normalize, do_rescale, rescale_factor = MEAN, STD, True, True, 1 / 255

    def __init__(self, flat: bool):
        self.flat, self.seen = flat, []

    def __call__(self, videos, *, video_metadata=None, do_sample_frames=None, **more):
        if do_sample_frames is not False:
            raise ValueError("frames were chosen before")
        metadata = make_batched_metadata(videos, video_metadata)
        self.seen = [np.stack([resized(frame) for frame in video]) for video in videos]
        pixels = [(torch.from_numpy(one / 255) - torch.tensor(MEAN)) / torch.tensor(STD) for one in self.seen]
        pixels = [one.permute(0, 3, 1, 2).float() for one in pixels]
        if not self.flat:
            return hf.BatchFeature({"pixel_values_videos": torch.stack(pixels), "video_metadata": metadata})
        found = [_patches(one) for one in pixels]
        grid = torch.tensor([[len(one) // SLICE + len(one) % SLICE, SIDE // PATCH, SIDE // PATCH] for one in pixels])
        return hf.BatchFeature(
            {"pixel_values_videos": torch.cat(found), "video_grid_thw": grid, "video_metadata": metadata}
        )


def resized(frame) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(frame)).resize((SIDE, SIDE)))


def _patches(frames: torch.Tensor) -> torch.Tensor:
    """(T, 3, 56, 56) -> (patches, 3 * 2 * 14 * 14), the last frame repeated where a slice is not full."""
    if len(frames) % SLICE:
        frames = torch.cat([frames, frames[-1:]])
    n = SIDE // PATCH // MERGE
    parts = frames.view(-1, SLICE, 3, n, MERGE, PATCH, n, MERGE, PATCH)
    return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * SLICE * PATCH * PATCH)


class _AnyVideos:
    """Lets a processor be made of a video half whose base class is not to be had."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return (
            None
            if argument_name == "video_processor"
            else super().check_argument_for_proper_class(argument_name, argument)
        )


class Qwen25Processor(_AnyVideos, hf.Qwen2_5_VLProcessor):
    pass


class InternVLProcessor(_AnyVideos, hf.InternVLProcessor):
    pass


def qwen2_5_vl() -> hf.Qwen2_5_VLProcessor:
    """Beside ``tiny.build("qwen2_5_vl")``."""
    names = {"<|image_pad|>": tiny.IMAGE, "<|video_pad|>": tiny.VIDEO}
    names |= {"<|vision_start|>": tiny.START, "<|vision_end|>": tiny.END}
    pictures = hf.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, image_mean=MEAN, image_std=STD)
    return Qwen25Processor(
        image_processor=pictures,
        tokenizer=numbered_words(_usual() | names),
        video_processor=PlainVideos(flat=True),
        chat_template=_template(
            "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )


def internvl() -> hf.InternVLProcessor:
    """Beside ``tiny.build("internvl")``."""
    tokenizer = numbered_words(
        _usual() | {"<IMG_CONTEXT>": tiny.IMAGE, "<img>": tiny.START, "</img>": tiny.END, "<video>": 101}
    )
    tokens = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    for name, token in tokens.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    pictures = hf.GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
    return InternVLProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=PlainVideos(flat=False),
        image_seq_length=16,
        chat_template=_template("<IMG_CONTEXT>", "<video>"),
    )


def _usual() -> dict[str, int]:
    return {"<pad>": tiny.PAD, "<bos>": tiny.BOS, "<unk>": 2, "<eos>": tiny.EOS}


def _template(image: str, video: str) -> str:
    """Parts one after the other, with spaces between."""
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{{{ {{'image': '{image}', 'video': '{video}'}}[part['type']] if 'text' not in part else part['text'] }}}}"
        "{{ ' ' }}{% endfor %}{% endfor %}"
    )
