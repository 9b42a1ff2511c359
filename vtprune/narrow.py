"""The arguments of a decoder layer, narrowed from the unpruned sequence to the rows and slots that are there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.apply import gather_rows
from vtprune.cache import PrunedDynamicLayer, PrunedLayer, PrunedStaticLayer, live_layer, prune_layer
from vtprune.families.base import Family
from vtprune.forward import Forward
from vtprune.masks import narrow_mask
from vtprune.ragged import RaggedMask, packs
from vtprune.slots import Slots
from vtprune_kernels.gather_site import gather_site

KNOWN_ARGUMENTS = {
    "hidden_states",
    "attention_mask",
    "position_embeddings",
    "position_ids",
    "past_key_values",
    "use_cache",
}


class LayerArguments:
    """Narrows what the decoder of one wrapped model hands to its layers. Layers pruned alike share the results."""

    def __init__(self, decoder: nn.Module, family: Family, ragged: str):
        self.decoder, self.family, self.ragged = decoder, family, ragged

    def shift(self, bound: Mapping, index: int) -> Tensor | None:
        """(B,) by how much earlier turns renumbered this layer's positions; None for original positions."""
        cache = bound.get("past_key_values")
        layer = live_layer(cache, index) if cache is not None else None
        if isinstance(layer, PrunedDynamicLayer):
            return layer.slots.shift
        return getattr(layer, "shift", None)

    def prefill(self, forward: Forward, index: int, hidden: Tensor, bound: dict) -> dict | None:
        """The layer's other arguments for the physical rows of a prefill; None if they stay as they are."""
        cache = bound.get("past_key_values")
        layer = live_layer(cache, index) if cache is not None else None
        if forward.columns is not None:
            if cache is not None:
                layer = prune_layer(cache, index, hidden, self._window(index), forward.fresh)
                layer.arrival = forward.arrival
            self._check_arguments(bound, forward)
        elif not isinstance(layer, PrunedLayer):
            return None
        out = dict(bound)
        out["attention_mask"] = self.mask(forward, index, layer, hidden, bound.get("attention_mask"))
        shift = forward.arrival.shift if forward.arrival is not None else self.shift(bound, index)
        if shift is not None and forward.positions != "compact-decode":
            out["position_embeddings"] = self.renumbered(forward, index, hidden, bound, shift)
        elif forward.columns is not None:
            out["position_embeddings"] = self._gathered(forward, bound.get("position_embeddings"))
        if forward.columns is not None:
            ids = bound.get("position_ids")
            out["position_ids"] = gather_rows(ids, forward.columns, -1) if self.family.reads_position_ids else None
            for name, dim in self.family.tokenwise.items():
                if isinstance(bound.get(name), Tensor):
                    out[name] = gather_rows(bound[name], forward.columns, dim)
        return out

    def mask(self, forward: Forward, index: int, layer, hidden: Tensor, mask):
        n = hidden.shape[1]
        if isinstance(layer, PrunedStaticLayer):
            kind = compat.attention_kind(self.decoder.config)
            # slots that hold nothing are hidden in every case, also when all rows keep the same number
            positions, valid = layer.coming_tensors(n)
            return narrow_mask(mask, forward.columns, positions, valid, n, layer.logical_length, 0, kind, hidden.dtype)
        slots = layer.coming(n) if layer is not None else None
        key = (id(slots), id(mask), hidden.device)
        if key not in forward.memo:
            # the keys are addresses, so what they belong to is kept alive beside the answer
            forward.memo[key] = (self._narrowed(forward, index, slots, hidden, mask), slots, mask)
        return forward.memo[key][0]

    def _narrowed(self, forward: Forward, index: int, slots: Slots | None, hidden: Tensor, mask):
        device, length = hidden.device, forward.length
        kind = compat.attention_kind(self.decoder.config)
        if slots is None:
            positions, valid, start = forward.columns, forward.valid, 0
        else:
            (positions, valid), start = slots.materialize(), slots.length - length
        window = self._window(index)
        if window and "flash" in kind and start + length > window:
            raise NotImplementedError(
                f"layer {index} of {type(self.decoder).__name__} has a window of {window} tokens, which FlashAttention "
                "counts in pruned tokens. Load the model with attn_implementation='sdpa', where the window is exact"
            )
        positions = positions.to(device)
        valid = None if valid is None else valid.to(device)
        columns = None if forward.columns is None else forward.columns.to(device)
        n = hidden.shape[1]
        narrowed = narrow_mask(mask, columns, positions, valid, n, start, start + length, kind, hidden.dtype)
        # without earlier keys samples attend to themselves alone
        alone = forward.columns is not None and start == 0 and positions.shape[1] == n
        return self._packed(forward, mask, narrowed, valid, device) if alone else narrowed

    def _packed(self, forward: Forward, mask, narrowed, valid: Tensor | None, device: torch.device):
        """The narrowed mask, such that samples attend without their padding where that is possible and wanted."""
        if narrowed is None or not packs(self.ragged, compat.attention_kind(self.decoder.config), device):
            return narrowed
        if mask is None:
            return RaggedMask.of(narrowed, valid, forward.lengths)
        lengths = forward.tokens_behind_padding()
        return narrowed if lengths is None else RaggedMask.if_causal(narrowed, forward.real(device), lengths)

    def _window(self, index: int) -> int | None:
        return compat.attention_window(self.decoder.layers[index].self_attn)

    def _gathered(self, forward: Forward, tables):
        if tables is None:
            return None
        device = tables[0].device if isinstance(tables, tuple) else tables.device
        key = ("rotary", id(tables), device)
        if key not in forward.memo:
            columns = forward.columns.to(device)
            gathered = gather_site(tables, columns) if isinstance(tables, tuple) else gather_rows(tables, columns)
            forward.memo[key] = (gathered, tables)
        return forward.memo[key][0]

    def renumbered(self, forward: Forward, index: int, hidden: Tensor, bound: Mapping, shift: Tensor):
        """Rotary tables for positions without gaps (``positions="compact"``)."""
        key = ("compact", id(shift), compat.layer_type(self.decoder, index), hidden.device)
        if key not in forward.memo:
            ids, shift = bound["position_ids"].expand(hidden.shape[0], -1), shift.to(hidden.device)
            if forward.columns is None:
                ids = ids - shift[:, None]
            else:
                earlier = shift - (forward.length - forward.counts(shift.device))
                ids = ids.gather(1, forward.columns) - forward.dropped_before() - earlier[:, None]
            forward.memo[key] = (compat.rotary(self.decoder, index, hidden, ids.clamp(min=0)), shift)
        return forward.memo[key][0]

    def _check_arguments(self, bound: Mapping, forward: Forward) -> None:
        for name, value in bound.items():
            if name in KNOWN_ARGUMENTS or name in self.family.tokenwise or not isinstance(value, Tensor):
                continue
            if value.dim() and forward.length in value.shape:
                raise NotImplementedError(
                    f"decoder layers of {type(self.decoder).__name__} take {name!r} of shape {tuple(value.shape)}, "
                    f"which may hold one entry for each of the {forward.length} tokens; vtprune does not know how to "
                    f"prune it. List it in `tokenwise` of {type(self.family).__name__} in vtprune/families/"
                )
