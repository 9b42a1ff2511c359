"""The signals of a forward: which layer inputs are kept for them, and what each sample's policy gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vtprune.attention import attention_inputs
from vtprune.cache import PrunedStaticLayer, live_layer
from vtprune.forward import CURRENT, Forward
from vtprune.signals import Need, needed, row_attention, row_layer
from vtprune.vision_signals import vision_taps


class Sight:
    """Serves the needs of one wrapped model's policy; computes nothing that was not asked for."""

    def __init__(self, pruner):
        self.pruner = pruner
        self.needs = needed(pruner.plan.policy)

    def tower_hooks(self, model: nn.Module) -> list:
        """(module, pre-hook) pairs on the vision tower, for the pruner to register."""
        texts = [need.text for need in self.needs if not need.in_decoder]
        return vision_taps(self.pruner.family, model, texts) if texts else []

    def layer_hooks(self) -> list:
        """(module, pre-hook) pairs on decoder layers."""
        return [(self.pruner.layers[i].self_attn, partial(self._watch, i)) for i in sorted(self._watched())]

    def _watched(self) -> set[int]:
        rows = [
            row_layer(need, site) for need in self.needs if need.in_decoder for site in self.pruner.plan.policy.sites
        ]
        return {row.index for row in rows if row is not None and not row.peek}

    def _watch(self, index: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling():
            return
        forward = CURRENT.get()
        if forward is None or forward.owner is not self.pruner or forward.layout is None:
            return
        inputs = {**kwargs, "hidden_states": args[0]} if args else kwargs
        forward.captured[index] = (inputs, forward.columns)

    def signals(
        self, forward: Forward, site: float, index: int, hidden: Tensor, bound: Mapping, b: int
    ) -> dict[str, Tensor]:
        """What sample ``b`` sees at ``site``, served in layer ``index`` whose hidden states and arguments are given."""
        found = {}
        for need in self.needs:
            if not need.in_decoder:
                found[need.text] = self._from_tower(forward, need, b).to(hidden.device)
                continue
            layer = row_layer(need, site)
            if layer is not None:
                if layer.peek:
                    self._peek(forward, index, hidden, bound)
                found[need.text] = self._rows(forward, need, layer.index, layer.peek, b)
        return found

    def _from_tower(self, forward: Forward, need: Need, b: int) -> Tensor:
        sample = forward.samples[b]
        seen = [source.signals.get(need.text) for source in sample.row.sources]
        if any(signal is None for signal in seen):
            raise ValueError(
                f"{need.text!r} comes from the vision tower, which did not run for this prompt while the model was "
                "wrapped. Pass pixel values, or encode with get_image_features after vtprune.wrap"
            )
        return torch.cat(seen, -1)[..., sample.offered[sample.alive].to(seen[0].device)]

    # ---- rows of decoder attention

    def _peek(self, forward: Forward, index: int, hidden: Tensor, bound: Mapping) -> None:
        key = ("peek", index)
        if forward.captured.get(key) is None:
            narrowed = self.pruner.arguments.prefill(forward, index, hidden, dict(bound)) or bound
            inputs = {**narrowed, "hidden_states": self.pruner.layers[index].input_layernorm(hidden)}
            forward.captured[key] = (inputs, forward.columns)

    def _rows(self, forward: Forward, need: Need, index: int, peek: bool, b: int) -> Tensor:
        inputs, columns = forward.captured[("peek", index) if peek else index]
        memo = ("rows", need.text, index, peek)
        if memo not in forward.memo:
            forward.memo[memo] = self._attention(forward, need, index, peek, inputs, columns)
        attention = forward.memo[memo]
        sample, device = forward.samples[b], attention.device
        offset = attention.shape[-1] - inputs["hidden_states"].shape[1]
        places = physical(columns, b, sample.row.columns[sample.offered[sample.alive]].to(device)) + offset
        if need.name == "last_query_attention":
            return attention[b, 0, places]
        return attention[b, : len(sample.row.text)][:, places]

    def _attention(self, forward: Forward, need: Need, index: int, peek: bool, inputs: Mapping, columns) -> Tensor:
        """(B, R, K) rows of the wanted text tokens over all keys, past ones included."""
        attn, hidden = self.pruner.layers[index].self_attn, inputs["hidden_states"]
        last = need.name == "last_query_attention"
        wanted = [sample.row.text[-1:] if last else sample.row.text for sample in forward.samples]
        most = max(len(rows) for rows in wanted)
        padded = [torch.cat([rows, rows[-1:].expand(most - len(rows))]) for rows in wanted]
        rows = torch.stack([physical(columns, b, row.to(hidden.device)) for b, row in enumerate(padded)])
        keys = self._keys(attn, inputs, index, peek)
        return row_attention(attn, inputs, rows, inputs.get("attention_mask"), keys)

    def _keys(self, attn: nn.Module, inputs: Mapping, index: int, peek: bool) -> Tensor | None:
        """The keys of the layer, past ones first; None: compute those of this forward, there are no others."""
        cache = inputs.get("past_key_values")
        layer = live_layer(cache, index) if cache is not None else None
        if layer is None or not layer.is_initialized or not layer.keys.numel():
            return None
        stored = layer.keys
        if isinstance(layer, PrunedStaticLayer) or hasattr(layer, "max_cache_len"):
            stored = stored[:, :, : int(layer.cumulative_length)]
        if stored.device != inputs["hidden_states"].device or (getattr(layer, "sliding_window", None) and not peek):
            return None
        if not peek:
            return stored
        plain = {k: v for k, v in inputs.items() if k in ("hidden_states", "position_embeddings", "position_ids")}
        (call,) = attention_inputs(attn, attention_mask=None, **plain)
        return torch.cat([stored, call.key], 2)


def physical(columns: Tensor | None, b: int, logical: Tensor) -> Tensor:
    """Physical rows of sample ``b`` that hold the given logical columns; pads repeat a column on the left."""
    if columns is None:
        return logical
    return torch.searchsorted(columns[b].contiguous(), logical, right=True) - 1
