"""Decoder layers that keep a state instead of keys and values: linear attention and short convolutions.

Order is the only position that such a layer knows, so from a site on it is given the kept tokens alone, adjacent and in
order. A hidden token would still shift its window and let its state decay. Its cache layer stays as it is: a state has
no slots and no length. Padding is zeroed by the layer itself, which is exact where nothing real stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.cache import live_layer
from vtprune.forward import Forward
from vtprune.states import has_state


def linear_mask(forward: Forward, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """(B, P), of a linear layer: which physical rows are tokens; None if all are and the model says no more.

    mask: (B, L) that the model made for the columns of this forward, or None.
    """
    key = ("linear", id(mask), device)
    if key not in forward.memo:
        valid = None if forward.valid is None else forward.valid.to(device)
        narrowed = valid
        if mask is not None:
            narrowed = mask.gather(1, forward.columns.to(device))
            narrowed = narrowed if valid is None else narrowed * valid.to(narrowed.dtype)
        # the key is an address, so what it belongs to is kept alive beside the answer
        forward.memo[key] = (narrowed, mask)
    return forward.memo[key][0]


def check_linear(forward: Forward, decoder: nn.Module, index: int, bound: Mapping) -> None:
    """Raises NotImplementedError where the pads of unequal counts would change what a linear layer computes."""
    if forward.valid is None:
        return
    kept = ", ".join(f"row {b}: {n}" for b, n in enumerate(forward.lengths))
    if getattr(decoder.config, "conv_bias", False):
        raise NotImplementedError(
            f"samples of this batch keep unequal numbers of tokens ({kept}), and padding is not neutral in the "
            f"convolutions of {type(decoder).__name__}, which have a bias (conv_bias=True). Run the samples one by one"
        )
    cache = bound.get("past_key_values")
    layer = live_layer(cache, index) if cache is not None else None
    if has_state(layer):
        raise NotImplementedError(
            f"this forward continues the state of layer {index} ({compat.layer_type(decoder, index)}), and its samples "
            f"keep unequal numbers of tokens ({kept}): the pads of the shorter ones would stand between state and "
            "tokens. Wrap the model with equalize=True, run the conversations one by one, or pass the whole of them "
            "without past_key_values"
        )
