"""How much there is to see in a patch: the entropy of its grey values."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.patches import Pixels


def raw_rgb(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 3, m) whole numbers from 0 to 255, of normalised values: value * std + mean, times 255."""
    mean, std = (torch.tensor(x, dtype=torch.float32, device=values.device)[:, None] for x in (mean, std))
    return ((values.float() * std + mean) * 255).round().clamp(0, 255)


def wrapped(values: Tensor) -> Tensor:
    """(..., 3, m) what 8 unsigned bits hold of 255 times the values, cut off towards zero: a fault of released code."""
    return (values.float() * 255).trunc().remainder(256)


def strange_share(pixels: Pixels, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """(n,) float32: of the values of each patch, how many these numbers do not bring back into 0..255."""
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device=pixels.values.device)[:, None]
        for x in (mean or pixels.mean, std or pixels.std)
    )
    rgb = (pixels.values.float() * std + mean) * 255
    return ((rgb < -2) | (rgb > 257)).float().mean((1, 2))


def grey_entropy(rgb: Tensor) -> Tensor:
    """(n,) float32, bits: of the grey values of each patch, 256 of them. rgb: (n, 3, m) whole numbers 0 to 255."""
    grey = (0.3333 * rgb.sum(1)).round().long()
    counts = torch.zeros(len(grey), 256, device=grey.device)
    share = counts.scatter_add_(1, grey, torch.ones_like(grey, dtype=counts.dtype)) / grey.shape[1]
    return -(share * (share + 1e-10).log2()).sum(1)


def entropy_share(
    pixels: Pixels,
    there: Tensor,
    source: Literal["raw_rgb", "official_wrap"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    """(n,) float32: the softmax over the patches of a picture of their entropies.

    mean, std: instead of those of ``pixels``. Raises ValueError where neither has any, and raw ones are wanted.
    """
    if source == "official_wrap":
        return grey_entropy(wrapped(pixels.values)).softmax(0)
    mean, std = mean or pixels.mean, std or pixels.std
    if mean is None or std is None:
        raise ValueError(
            "how the processor of this model normalises pixels is not known, so they cannot be brought back to 0..255: "
            "give pixel_mean and pixel_std, the image_mean and image_std of its image processor"
        )
    return grey_entropy(raw_rgb(pixels.values, mean, std)).softmax(0)
