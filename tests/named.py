"""What this release of transformers calls the inputs of a model or of its encoder; the tests call them as 5.23 does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_OTHERS = {"pixel_values": "pixel_values_images", "pixel_values_videos": "pixel_values"}
"""Video-LLaVA's images and, of encoders, the videos of LLaVA-NeXT-Video and LLaVA-OneVision in 5.9 and 5.16."""


def as_named(call: Callable, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by the names that ``call``, a forward or an encoder, has for them; the rest as they are called."""
    taken = inspect.signature(call).parameters
    return {
        _OTHERS[name] if name not in taken and _OTHERS.get(name) in taken else name: value
        for name, value in inputs.items()
    }
