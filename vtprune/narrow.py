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
from vtprune.linear import check_linear, linear_mask
from vtprune.masks import KeptWindow, narrow_mask
from vtprune.ragged import RaggedMask, packs
from vtprune.slots import Slots
from vtprune_kernels.gather_site import gather_site

KNOWN_ARGUMENTS = {
    "hidden_states",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "shared_kv_states",
    "use_cache",
}
"""Layer arguments that are understood. Those whose names begin with ``ROTARY`` are rotary tables; in
``shared_kv_states`` layers find what earlier ones left there, which is physical like their cache."""

ROTARY = "position_embeddings"

USE = "Use positions='original', where it counts the tokens of the unpruned prompt"


def knows(name: str, family: Family) -> bool:
    """Whether it is known how to prune a layer's argument."""
    return name in KNOWN_ARGUMENTS or name.startswith(ROTARY) or name in family.tokenwise


class LayerArguments:
    """Narrows what the decoder of one wrapped model hands to its layers. Layers pruned alike share the results."""

    def __init__(self, decoder: nn.Module, family: Family, ragged: str, linear: frozenset[int] = frozenset()):
        self.decoder, self.family, self.ragged, self.linear = decoder, family, ragged, linear
        self.sources = family.kv_source(decoder)
        self.reads_position_ids = decoder.config.model_type in family.reads_position_ids

    def stored(self, cache, index: int):
        """The cache layer that holds the keys of decoder layer ``index``; None without a cache."""
        return None if cache is None else live_layer(cache, self.sources.get(index, index))

    def shift(self, bound: Mapping, index: int) -> Tensor | None:
        """(B,) by how much earlier turns renumbered this layer's positions; None for original positions.

        Linear layers have no positions; what is dropped before one is dropped for the attention layer behind it.
        """
        while index in self.linear:
            index += 1
        layer = self.stored(bound.get("past_key_values"), index)
        if isinstance(layer, PrunedDynamicLayer):
            return layer.slots.shift
        return getattr(layer, "shift", None)

    def prefill(self, forward: Forward, index: int, hidden: Tensor, bound: dict) -> dict | None:
        """The layer's other arguments for the physical rows of a prefill; None if they stay as they are."""
        if index in self.linear:
            return None if forward.columns is None else self._linear(forward, index, hidden, bound)
        cache = bound.get("past_key_values")
        layer = self.stored(cache, index)
        if forward.columns is not None:
            if cache is not None and index not in self.sources:
                layer = prune_layer(cache, index, hidden, self._window(index), forward.fresh)
                layer.arrival = forward.arrival
            self._check_arguments(bound, forward)
        elif not isinstance(layer, PrunedLayer):
            return None
        out = dict(bound)
        shift = forward.arrival.shift if forward.arrival is not None else self.shift(bound, index)
        shift = None if forward.positions == "compact-decode" else shift
        mask = bound.get("attention_mask")
        out["attention_mask"] = self.mask(forward, index, layer, hidden, mask, shift is not None)
        if forward.columns is not None:
            out.update(self._gathered(forward, bound))
        if shift is not None:
            out.update(self.renumbered(forward, index, hidden, bound, shift))
        return out

    def _linear(self, forward: Forward, index: int, hidden: Tensor, bound: dict) -> dict:
        """The same for a layer that keeps a state; its cache layer stays as it is."""
        check_linear(forward, self.decoder, index, bound)
        self._check_arguments(bound, forward)
        mask = linear_mask(forward, bound.get("attention_mask"), hidden.device)
        return {**bound, "attention_mask": mask, **self._gathered(forward, bound)}

    def mask(self, forward: Forward, index: int, layer, hidden: Tensor, mask, renumbered: bool):
        """The layer's mask for physical rows and slots; where positions are renumbered, its window counts those."""
        n, shared = hidden.shape[-2], index in self.sources
        if isinstance(layer, PrunedStaticLayer):
            if renumbered:
                self._check_static_window(index, layer)
            kind = compat.attention_kind(self.decoder.config)
            # slots that hold nothing are hidden in every case, also when all rows keep the same number
            positions, valid, bias = layer.stored_tensors() if shared else layer.coming_tensors(n)
            columns = None if forward.cut else forward.columns
            start = layer.logical_length
            total = start if shared else start + (forward.length if layer.arrival is None else layer.arrival.length)
            return narrow_mask(mask, columns, positions, valid, n, start, total, kind, hidden.dtype, bias)
        # the layer whose keys are shared has run, so it holds the keys of this forward already
        slots = None if layer is None else layer.slots if shared else layer.coming(n)
        key = (id(slots), id(mask), n, hidden.device, self._window(index) if renumbered else None)
        if key not in forward.memo:
            # the keys are addresses, so what they belong to is kept alive beside the answer
            forward.memo[key] = (self._narrowed(forward, index, slots, hidden, mask, renumbered), slots, mask)
        return forward.memo[key][0]

    def _narrowed(self, forward: Forward, index: int, slots: Slots | None, hidden: Tensor, mask, renumbered: bool):
        device, length = hidden.device, forward.length
        kind = compat.attention_kind(self.decoder.config)
        if slots is None:
            positions, valid, bias, start = forward.columns, forward.valid, forward.arrival.bias, 0
        else:
            (positions, valid, bias), start = slots.materialize(), slots.length - length
        n = hidden.shape[-2]
        window = self._window(index)
        if window and "flash" in kind and start + length > window:
            raise NotImplementedError(
                f"layer {index} of {type(self.decoder).__name__} has a window of {window} tokens, which FlashAttention "
                "counts in pruned tokens. Load the model with attn_implementation='sdpa', where the window is exact"
            )
        positions = positions.to(device)
        valid, bias = (None if flags is None else flags.to(device) for flags in (valid, bias))
        columns = None if forward.columns is None or forward.cut else forward.columns.to(device)
        # rows that were not dropped are the last of all, also where the decoder went on with a few of them
        first = start if columns is not None else start + length - n
        total = start + length
        kept = self._kept_window(forward, index, hidden, mask, total) if renumbered and window else None
        narrowed = narrow_mask(mask, columns, positions, valid, n, first, total, kind, hidden.dtype, bias, kept)
        # without earlier keys samples attend to themselves alone; what is added to scores needs the mask
        alone = columns is not None and start == 0 and positions.shape[1] == n and bias is None
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

    def _kept_window(self, forward: Forward, index: int, hidden: Tensor, mask, total: int) -> KeptWindow | None:
        """What the layer's window counts where positions are renumbered; None where it hides nothing of ``total``."""
        window = self._window(index)
        if mask is None or total <= window:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise NotImplementedError(f"{self._counts(index)} for this mask. {USE}")
        real = forward.mask2d if forward.mask2d is not None else forward.mask
        full = real.get("full_attention", mask) if isinstance(real, Mapping) else None
        if isinstance(full, Tensor) and full is not mask:
            # the last query of a layer without a window sees every token that is there
            last = full[:, 0, -1]
            full = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        real = full if isinstance(real, Mapping) else real
        if real is not None and (real.dim() != 2 or real.shape[1] < total):
            raise NotImplementedError(f"{self._counts(index)}, as nothing says which tokens are padding. {USE}")
        return KeptWindow(window, None if real is None else real.bool().to(hidden.device).expand(hidden.shape[-3], -1))

    def _check_static_window(self, index: int, layer: PrunedStaticLayer) -> None:
        if (self._window(index) or layer.max_cache_len) < layer.max_cache_len:
            raise NotImplementedError(f"{self._counts(index)} in a static cache. {USE}; or the default cache")

    def _counts(self, index: int) -> str:
        return (
            f"layer {index} of {type(self.decoder).__name__} has a window of {self._window(index)} tokens, which "
            "cannot be made to count renumbered positions"
        )

    def _gathered(self, forward: Forward, bound: Mapping) -> dict:
        """What has an entry for every token, at the columns that are there."""
        if forward.cut:
            return {"position_ids": None}
        out = {name: self._tables(forward, value) for name, value in bound.items() if name.startswith(ROTARY)}
        out["position_ids"] = self._ids(forward, bound)
        for name, dim in self.family.tokenwise.items():
            if isinstance(bound.get(name), Tensor):
                out[name] = gather_rows(bound[name], forward.columns.to(bound[name].device), dim)
        return out

    def _ids(self, forward: Forward, bound: Mapping) -> Tensor | None:
        """Positions with gaps look like packed sequences to FlashAttention, so only those get them who need them."""
        ids = bound.get("position_ids")
        if not self.reads_position_ids or ids is None:
            return None
        return gather_rows(ids, forward.columns.to(ids.device), -1)

    def _tables(self, forward: Forward, tables):
        if tables is None:
            return None
        device = tables[0].device if isinstance(tables, tuple) else tables.device
        key = ("rotary", id(tables), device)
        if key not in forward.memo:
            columns = forward.columns.to(device)
            gathered = gather_site(tables, columns) if isinstance(tables, tuple) else gather_rows(tables, columns)
            forward.memo[key] = (gathered, tables)
        return forward.memo[key][0]

    def renumbered(self, forward: Forward, index: int, hidden: Tensor, bound: Mapping, shift: Tensor) -> dict:
        """Arguments that tell positions without gaps (``positions="compact"``)."""
        # the decoder may have gone on with the last rows alone
        key = ("compact", id(shift), compat.layer_type(self.decoder, index), hidden.device, hidden.shape[-2])
        if key not in forward.memo:
            ids, shift = bound["position_ids"].expand(hidden.shape[-3], -1), shift.to(hidden.device)
            if forward.columns is None:
                ids = ids - shift[:, None]
            else:
                earlier = shift - forward.dropped(shift.device)
                ids = ids.gather(1, forward.columns) - forward.dropped_before() - earlier[:, None]
            ids = ids[:, -hidden.shape[-2] :].clamp(min=0)
            out = {ROTARY: compat.rotary(self.decoder, index, hidden, ids)}
            if self.reads_position_ids:
                out["position_ids"] = ids
            forward.memo[key] = (out, shift)
        return forward.memo[key][0]

    def _check_arguments(self, bound: Mapping, forward: Forward) -> None:
        for name, value in bound.items():
            if knows(name, self.family) or not isinstance(value, Tensor):
                continue
            if value.dim() and forward.length in value.shape:
                raise NotImplementedError(
                    f"decoder layers of {type(self.decoder).__name__} take {name!r} of shape {tuple(value.shape)}, "
                    f"which may hold one entry for each of the {forward.length} tokens; vtprune does not know how to "
                    f"prune it. List it in `tokenwise` of {type(self.family).__name__} in vtprune/families/"
                )
