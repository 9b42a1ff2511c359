"""Cache layers that hold states instead of keys and values: windows of convolutions, memories of linear attention.

They stay as transformers makes them: there is nothing positional in a state, so pruning has nothing to change in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vtprune import compat

if TYPE_CHECKING:
    from transformers import Cache


def keeps_state(layer: object) -> bool:
    """Whether a cache layer is of the kind that holds states."""
    return hasattr(layer, "has_previous_state")


def has_state(layer: object) -> bool:
    """Whether a cache layer holds the state of earlier tokens."""
    return keeps_state(layer) and any(layer.has_previous_state.values())


def check_places(cache: Cache, decoder: nn.Module, linear: Iterable[int]) -> None:
    """Raises ValueError for a cache that has no place for the states of the decoder's linear layers."""
    for index in sorted(linear):
        layer = cache.layers[index] if index < len(cache.layers) else None
        if not keeps_state(layer):
            raise ValueError(
                f"layer {index} of {type(decoder).__name__} ({compat.layer_type(decoder, index)}) keeps a state, and "
                f"this {type(cache).__name__} has {'nothing' if layer is None else 'a ' + type(layer).__name__} there. "
                "Make it with DynamicCache(config=model.config.get_text_config()), or let generate make it"
            )


def check_rollback(layers: Sequence[object]) -> None:
    """Raises NotImplementedError where tokens cannot be taken out of a cache again, before any layer has lost them."""
    for index, layer in enumerate(layers):
        if not has_state(layer):
            continue
        if any(state is not None for state in layer.recurrent_states.values()):
            raise NotImplementedError(
                f"layer {index} keeps a recurrent state, out of which tokens cannot be taken again, so this cache "
                "cannot be cropped and assisted decoding is impossible. Keep a copy.deepcopy of the cache to go back to"
            )
        if not layer.record_past:
            raise NotImplementedError(
                f"layer {index} has forgotten what its convolution saw before the last tokens, so this cache cannot be "
                "cropped. Call cache.activate_past_recording() before the tokens come that may be cropped"
            )


def state_bytes(cache: object) -> int:
    """Bytes of the states in a cache."""
    return sum(state.nbytes for layer in getattr(cache, "layers", ()) for state in _states(layer))


def _states(layer: object) -> Iterable[Tensor]:
    held: Sequence[Mapping] = (layer.conv_states, layer.recurrent_states) if keeps_state(layer) else ()
    return (state for states in held for state in states.values() if state is not None)
