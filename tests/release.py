"""The release of transformers under test: what it calls the inputs of its models, and what these cannot do alone.

The tests call inputs as 5.23 does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import transformers as hf

RELEASE = tuple(int(part) for part in hf.__version__.split(".")[:2])

_OTHERS = {"pixel_values": "pixel_values_images", "pixel_values_videos": "pixel_values"}
"""Video-LLaVA's images and, of encoders, the videos of LLaVA-NeXT-Video and LLaVA-OneVision in 5.9 and 5.16."""

_UNABLE = {
    ("beams", "exaone4_5"): (5, 23),  # 5.9 and 5.16 take every placeholder for an image
    ("beams", "qwen2_5_omni"): (5, 16),  # 5.9 gives each beam the grids of another sample's
    ("beams", "qwen3_omni_moe"): (5, 16),
    ("pictures of unequal size", "minicpmv4_6"): (5, 23),  # 5.16 divides the patches by the number of pictures
}
"""What unwrapped models raised on, by test and family, and the first release that was seen to do it."""


def as_named(call: Callable, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by the names that ``call``, a forward or an encoder, has for them; the rest as they are called."""
    taken = inspect.signature(call).parameters
    return {
        _OTHERS[name] if name not in taken and _OTHERS.get(name) in taken else name: value
        for name, value in inputs.items()
    }


def skip_unable(what: str, family: str, run: Callable[[], object]) -> None:
    """Skips a test where ``run``, which is about the unwrapped model, raises as it did when it was written down."""
    if RELEASE >= _UNABLE.get((what, family), (0,)):
        return
    try:
        run()
    except (IndexError, RuntimeError, ValueError) as error:
        pytest.skip(f"{what} of the unwrapped {family} with transformers {hf.__version__}: {error}")
