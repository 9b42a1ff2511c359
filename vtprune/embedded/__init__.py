"""The trained models that ship with vtprune: small, stock transformers models that load with no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, Qwen3VLForConditionalGeneration

    from vtprune.embedded.video_processor import ClipProcessor

__all__ = ["example", "image_path", "load_image", "load_video", "video_path"]

EXAMPLE_SEED = 43  # of the test split; the bundled picture is this scene
EXAMPLE_QUESTION, EXAMPLE_ANSWER = "Which digit is cyan?", "5"


def image_path() -> Path:
    """The folder of the image model: weights, configuration, processor and its card (``README.md``)."""
    return Path(__file__).with_name("image")


def load_image(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The image model, ready to generate, and its processor: a stock LLaVA with 144 visual tokens per picture.

    dtype:  of the weights in memory, float32 if None; on disk they are bfloat16.
    device: where the model goes.
    """
    from transformers import AutoProcessor

    return _model(image_path(), dtype, device), AutoProcessor.from_pretrained(image_path(), local_files_only=True)


def video_path() -> Path:
    """The folder of the video model: weights, configuration, tokenizer and its card (``README.md``)."""
    return Path(__file__).with_name("video")


def load_video(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Qwen3VLForConditionalGeneration, ClipProcessor]:
    """The video model, ready to generate, and its processor: a stock Qwen3-VL with 16 visual tokens per two frames.

    dtype:  of the weights in memory, float32 if None; on disk they are bfloat16.
    device: where the model goes.
    """
    from vtprune.embedded.video_processor import ClipProcessor

    return _model(video_path(), dtype, device), ClipProcessor.from_pretrained(video_path())


def _model(folder: Path, dtype: torch.dtype | None, device: str | torch.device):
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.to(device).eval()


def example() -> tuple[Image, str, str]:
    """A picture (RGB) that the model was not trained on, a question about it, and the right answer."""
    from PIL import Image

    with Image.open(Path(__file__).with_name("example.png")) as picture:
        return picture.convert("RGB"), EXAMPLE_QUESTION, EXAMPLE_ANSWER
