"""Cache layers that hold pruned keys and values but answer with the unpruned length.

Everything above the decoder layers (``generate``, mask builders, positions) asks a cache for lengths and must hear
those of the unpruned conversation. So a layer of a live cache is replaced by a subclass of its own class, made on the
fly: keys and values stay physical, ``get_seq_length`` and ``get_mask_sizes`` turn logical, and the slots follow
every reorder, crop and copy. All state between forwards lives here and none on the model, so several caches,
beams, second turns and threads do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from vtprune.slots import Slots
from vtprune.states import check_rollback


@dataclass(frozen=True)
class Arrival:
    """What the next ``update`` of a pruned layer stores: kept ``columns`` (B, K) of a forward of ``length`` tokens.

    bias: (B, K) float that is added to the scores of their keys, or None.
    """

    columns: Tensor
    valid: Tensor | None
    length: int
    shift: Tensor | None
    bias: Tensor | None = None


class PrunedLayer:
    """What all pruned layers share. ``arrival`` says what the next ``update`` stores; None: every token it gets."""

    arrival: Arrival | None
    masked: bool = False
    """Whether a decode step came with a mask, as it will again."""

    def _pick(self, rows: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = (t[rows.to(t.device)] for t in (self.keys, self.values))

    def __reduce__(self):
        return _rebuild, (_plain(type(self)),), self.__dict__


class PrunedDynamicLayer(PrunedLayer):
    """Mixed in before ``DynamicLayer``. ``slots`` says what is stored."""

    slots: Slots
    beside: Sequence = ()
    """All layers of the cache."""

    def held(self) -> tuple[Tensor, Tensor | None, int]:
        """Positions (B or 1, P) of what it holds, valid (B, P) or None, and the logical length."""
        positions, valid, _ = self.slots.materialize()
        return positions, valid, self.slots.length

    def shrink(self, index: Tensor, valid: Tensor | None, keys: Tensor, values: Tensor) -> None:
        """Holds these keys and values (B, H_kv, K, d) instead, those of its slots ``index`` (B, K), where ``valid``."""
        positions, old, bias = self.slots.materialize()
        positions = positions.expand(len(index), -1).gather(1, index)
        both = old is not None and old.expand(len(index), -1).gather(1, index)
        valid = (both if valid is None else both & valid) if old is not None else valid
        bias = None if bias is None else bias.expand(len(index), -1).gather(1, index)
        self.slots = Slots(positions, valid, self.slots.length, 0, self.slots.shift, bias)
        self.keys, self.values = keys, values

    def coming(self, n: int) -> Slots:
        """The slots after the next ``update`` with ``n`` tokens."""
        if self.arrival is None:
            return self.slots.append(n)
        come = self.arrival
        return self.slots.extend(come.columns, come.valid, come.length, come.shift, come.bias)

    @property
    def biased(self) -> bool:
        """Whether anything is added to the scores of some of its keys."""
        return self.slots.bias is not None or (self.arrival is not None and self.arrival.bias is not None)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.slots, self.arrival = self.coming(key_states.shape[-2]), None
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.slots.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.length + query_length, 0

    # the base methods ask get_seq_length, which is logical here, so these work on the tensors themselves

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._pick(beam_idx)
        self.slots = self.slots.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.keys, self.values = (t.repeat_interleave(repeats, 0) for t in (self.keys, self.values))
        self.slots = self.slots.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            # the older meaning of a positive number: the length to crop to
            tokens_to_remove = min(0, tokens_to_remove - self.slots.length)
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        check_rollback(self.beside)
        self.slots = self.slots.crop(-tokens_to_remove)
        self.keys, self.values = (t[..., :tokens_to_remove, :] for t in (self.keys, self.values))

    def reset(self) -> None:
        super().reset()
        self.slots, self.arrival = Slots(self.slots.positions[:1, :0], None, 0), None


SLOT_TENSORS = ("slot_positions", "slot_valid", "slot_bias")
"""What a pruned static layer holds for each of its slots, beside keys and values."""


class PrunedStaticLayer(PrunedLayer):
    """Mixed in before ``StaticLayer``: slots are tensors of fixed shape, changed in place, for compiled decoding.

    slot_positions, slot_valid: (B, max_cache_len). logical_length: () int64.
    slot_bias: (B, max_cache_len) float, what is added to the scores of the keys; None until something is, and old in
    slots that hold nothing.
    """

    slot_bias: Tensor | None = None

    def prepare(self, batch: int, device: torch.device) -> None:
        """Allocates the slots, once; tokens stored before the layer was replaced keep their positions."""
        if getattr(self, "slot_positions", None) is not None:
            return
        stored = self.cumulative_length.to(device) if self.is_initialized else torch.tensor(0, device=device)
        self.slot_positions = torch.arange(self.max_cache_len, device=device).repeat(batch, 1)
        self.slot_valid = self.slot_positions < stored
        self.logical_length = stored.clone()
        self.trimmed, self.shift = False, None
        if not torch.compiler.is_compiling():
            for tensor in (self.slot_positions, self.slot_valid, self.logical_length):
                torch._dynamo.mark_static_address(tensor)

    def held(self) -> tuple[Tensor, Tensor | None, int]:
        """Positions (B, P) of what it holds, valid (B, P), and the logical length."""
        n = int(self.cumulative_length)
        return self.slot_positions[:, :n], self.slot_valid[:, :n], int(self.logical_length)

    def shrink(self, index: Tensor, valid: Tensor | None, keys: Tensor, values: Tensor) -> None:
        """Holds these keys and values (B, H_kv, K, d) instead, those of its slots ``index`` (B, K), where ``valid``."""
        n, kept = index.shape[1], self.slot_valid.gather(1, index)
        self.keys.zero_()[:, :, :n].copy_(keys)
        self.values.zero_()[:, :, :n].copy_(values)
        self.slot_positions[:, :n] = self.slot_positions.gather(1, index)
        self.slot_valid.zero_()[:, :n] = kept if valid is None else kept & valid
        if self.slot_bias is not None:
            self.slot_bias[:, :n] = self.slot_bias.gather(1, index)
        self.cumulative_length.fill_(n)
        self.trimmed = True

    def coming_tensors(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions, valid and bias (B, max_cache_len) or None after the next ``update`` with ``n`` tokens."""
        device, batch = self.slot_positions.device, self.slot_positions.shape[0]
        stored = self.cumulative_length if self.is_initialized else torch.tensor(0, device=device)
        if self.arrival is None:
            columns, valid, bias = torch.arange(n, device=device).expand(batch, -1), None, None
        else:
            columns, valid, bias = self.arrival.columns, self.arrival.valid, self.arrival.bias
        if valid is None:
            valid = torch.ones_like(columns, dtype=torch.bool)
        where = torch.arange(n, device=device) + stored
        positions = self.slot_positions.index_copy(1, where, columns + self.logical_length)
        valid = self.slot_valid.index_copy(1, where, valid)
        if bias is None and self.slot_bias is None:
            return positions, valid, None
        old = bias.new_zeros(self.slot_positions.shape) if self.slot_bias is None else self.slot_bias
        new = old.new_zeros(batch, n) if bias is None else bias.to(old)
        return positions, valid, old.index_copy(1, where, new)

    @property
    def biased(self) -> bool:
        """Whether anything is added to the scores of some of its keys."""
        return self.slot_bias is not None or (self.arrival is not None and self.arrival.bias is not None)

    def stored_tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions, valid and bias (B, max_cache_len) or None as they are."""
        return self.slot_positions, self.slot_valid, self.slot_bias

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        batch, _, n, _ = key_states.shape
        self.prepare(batch, key_states.device)
        positions, valid, bias = self.coming_tensors(n)
        self.slot_positions.copy_(positions)
        self.slot_valid.copy_(valid)
        if bias is not None:
            self._keep_bias(bias)
        self.logical_length.add_(n if self.arrival is None else self.arrival.length)
        if self.arrival is not None:
            self.trimmed, self.shift, self.arrival = True, self.arrival.shift, None
        return super().update(key_states, value_states, *args, **kwargs)

    def _keep_bias(self, bias: Tensor) -> None:
        if self.slot_bias is None:
            self.slot_bias = torch.zeros_like(bias)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(self.slot_bias)
        self.slot_bias.copy_(bias)

    def get_seq_length(self) -> Tensor | int:
        return self.logical_length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.max_cache_len, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._pick(beam_idx)
        if getattr(self, "slot_positions", None) is not None:
            rows = beam_idx.to(self.slot_positions.device)
            self.slot_positions.copy_(self.slot_positions[rows])
            self.slot_valid.copy_(self.slot_valid[rows])
            if self.slot_bias is not None:
                self.slot_bias.copy_(self.slot_bias[rows])
            self.shift = None if self.shift is None else self.shift[rows]

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a static cache cannot be cropped; use the default cache for assisted decoding")

    def _pick(self, rows: Tensor) -> None:
        if self.is_initialized:
            # in place: a compiled decode step holds the addresses
            self.keys.copy_(self.keys[rows.to(self.keys.device)])
            self.values.copy_(self.values[rows.to(self.values.device)])

    def reset(self) -> None:
        super().reset()
        self.arrival = None
        if getattr(self, "slot_positions", None) is not None:
            self.slot_positions.copy_(torch.arange(self.max_cache_len, device=self.slot_positions.device))
            self.slot_valid.zero_()
            self.logical_length.zero_()
            self.trimmed, self.shift = False, None


@cache
def pruned_class(plain: type) -> type:
    """The pruned subclass of a cache layer's class."""
    mixin = PrunedStaticLayer if issubclass(plain, StaticLayer) else PrunedDynamicLayer
    return type(f"Pruned{plain.__name__}", (mixin, plain), {})


def _plain(pruned: type) -> type:
    return next(c for c in pruned.__mro__ if not issubclass(c, PrunedLayer))


def _rebuild(plain: type):
    return object.__new__(pruned_class(plain))


def dense(layer) -> bool:
    """Whether a decode step needs nothing from this cache layer."""
    if not isinstance(layer, PrunedLayer):
        return True
    if isinstance(layer, PrunedStaticLayer):
        return not layer.trimmed
    slots = layer.slots
    return slots.valid is None and slots.shift is None and slots.bias is None and not layer.masked


def live_layer(cache: Cache, index: int):
    """The cache layer of a decoder layer; None if it does not exist yet."""
    layers = cache.layers
    return layers[index] if index < len(layers) else None


def prune_layer(cache: Cache, index: int, hidden: Tensor, window: int | None, fresh: dict) -> PrunedLayer:
    """Replaces the cache layer of decoder layer ``index`` by its pruned twin, once. Contents are kept.

    hidden: (..., B, P, D) that the layer is about to see. window: how far back its attention looks, None for all.
    fresh: slots of the layers replaced before in this forward, so that layers pruned alike share one object.

    Raises NotImplementedError for layers whose contents cannot follow: windows that already hold tokens, fixed
    windows, quantized or recurrent states.
    """
    layers = cache.layers
    while len(layers) <= index:
        layers.append(cache.layer_class_to_replicate())
    layer = layers[index]
    if not isinstance(layer, PrunedLayer):
        layer = layers[index] = _twin(_widened(layer, layers, window), hidden, fresh)
        layer.beside = layers
    return layer


def _widened(layer, layers: list, window: int | None):
    """Instead of an empty static layer for a window, one with room for all tokens: the model's own mask slides."""
    if type(layer) is not StaticSlidingWindowLayer or layer.cumulative_length_int or not window:
        return layer
    full = [other.max_cache_len for other in layers if isinstance(other, StaticLayer) and not other.is_sliding]
    # a cache that is smaller than the window never slides; otherwise layers without a window tell how much there may be
    room = layer.max_cache_len if window > layer.max_cache_len else max(full, default=0)
    if not room:
        return layer
    new = StaticLayer(room)
    new.is_sliding = layer.is_sliding
    return new


def _twin(layer, hidden: Tensor, fresh: dict) -> PrunedLayer:
    plain, device = type(layer), hidden.device
    if plain not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer):
        raise NotImplementedError(
            f"vtprune cannot prune a {plain.__name__}; it prunes DynamicLayer, DynamicSlidingWindowLayer and "
            "StaticLayer. Use the default cache, or an empty static one of a model in which some layers see everything"
        )
    if plain is DynamicSlidingWindowLayer:
        held = layer.keys.shape[-2] if layer.get_seq_length() else 0
        if layer.get_seq_length() > held:
            raise NotImplementedError(
                f"a sliding-window cache of which {layer.get_seq_length() - held} of {layer.get_seq_length()} tokens "
                "have left the window cannot be pruned. Pass the whole conversation without past_key_values"
            )
        # all kept tokens stay from here on; the model's own sliding mask does the window
        plain = DynamicLayer
    twin = object.__new__(pruned_class(plain))
    twin.__dict__.update(layer.__dict__)
    twin.is_sliding, twin.arrival = layer.is_sliding, None
    if plain is StaticLayer:
        twin.prepare(hidden.shape[-3], device)
        return twin
    stored = layer.get_seq_length()
    if stored not in fresh:
        empty = torch.zeros(layer.keys.shape[0] if stored else 1, 0, dtype=torch.int64, device=device)
        fresh[stored] = Slots(empty, None, stored, stored)
    twin.slots = fresh[stored]
    return twin
