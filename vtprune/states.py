"""Cache layers that hold states instead of keys and values: windows of convolutions, memories of linear attention.

There is nothing positional in a state, so pruning has nothing to change in it. Their layers only get a ``crop`` that
says what cannot be taken back, before any layer of the cache has lost something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
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


def check_places(held: Cache, decoder: nn.Module, linear: Iterable[int]) -> None:
    """Raises ValueError for a cache that has no place for the states of the decoder's linear layers."""
    for index in sorted(linear):
        layer = held.layers[index] if index < len(held.layers) else None
        if not keeps_state(layer):
            raise ValueError(
                f"layer {index} of {type(decoder).__name__} ({compat.layer_type(decoder, index)}) keeps a state, and "
                f"this {type(held).__name__} has {'nothing' if layer is None else 'a ' + type(layer).__name__} there. "
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


class GuardedLayer:
    """Mixed in before the class of a layer that keeps a state. ``beside``: all layers of the cache."""

    beside: Sequence[object] = ()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            check_rollback(self.beside)
        super().crop(tokens_to_remove)

    def __reduce__(self):
        plain = next(c for c in type(self).__mro__ if not issubclass(c, GuardedLayer))
        return _rebuild, (plain,), self.__dict__


@cache
def _guarded_class(plain: type) -> type:
    return type(f"Guarded{plain.__name__}", (GuardedLayer, plain), {})


def _rebuild(plain: type) -> object:
    return object.__new__(_guarded_class(plain))


def guard(held: Cache) -> None:
    """Replaces the layers of a cache that keep states by twins that cannot be cropped wrongly, once."""
    for index, layer in enumerate(held.layers):
        if keeps_state(layer) and not isinstance(layer, GuardedLayer):
            twin = _rebuild(type(layer))
            twin.__dict__.update(layer.__dict__)
            twin.beside = held.layers
            held.layers[index] = twin


def state_bytes(held: object) -> int:
    """Bytes of the states in a cache."""
    return sum(state.nbytes for layer in getattr(held, "layers", ()) for state in _states(layer))


def _states(layer: object) -> Iterable[Tensor]:
    held: Sequence[Mapping] = (layer.conv_states, layer.recurrent_states) if keeps_state(layer) else ()
    return (state for states in held for state in states.values() if state is not None)
