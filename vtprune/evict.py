"""Eviction: what a policy of the cache sees of each layer of a prefill, and how its answers are carried out.

A forward of a prompt runs as it is. Right after the attention of a layer the policy may look at it, while its input and
its keys are at hand; when the last layer has run it says what stays, sample by sample and layer by layer, and the cache
layers shrink. They answer with unpruned lengths from then on, as those of pruned prompts do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.cache import PrunedLayer, PrunedStaticLayer, prune_layer
from vtprune.cache_ahead import copied, hear, look_ahead
from vtprune.cache_sight import CacheSight
from vtprune.cached import CachedLayer, CachedPrompt, CachedSlots, Eviction, Evictions, evicts
from vtprune.check_evictions import check_evictions, check_merges
from vtprune.families.base import Family
from vtprune.forward import CURRENT, Forward
from vtprune.records import CacheRecord
from vtprune.report import measured_bytes
from vtprune.sinks import FIRST_LAYER
from vtprune.stopwatch import Stopwatch

if TYPE_CHECKING:
    from transformers import Cache

WINDOWED = ("sliding_attention", "chunked_attention")
"""Kinds of layers that see some tokens back only."""


NO_CACHE = "this forward kept no cache (use_cache=False), so nothing could be evicted"


def evictable(decoder: nn.Module, family: Family, linear: frozenset[int]) -> tuple[int, ...]:
    """The layers whose cache can be evicted from: with attention to all tokens, and keys and values of their own."""
    shared = family.kv_source(decoder)
    return tuple(
        index
        for index, layer in enumerate(decoder.layers)
        if index not in linear
        and index not in shared
        and compat.layer_type(decoder, index) not in WINDOWED
        and compat.attention_window(layer.self_attn) is None
    )


def check_evicts(policy: Any, decoder: nn.Module, family: Family, linear: frozenset[int]) -> None:
    """Raises NotImplementedError for a policy that evicts where no layer's cache can be evicted from."""
    if evicts(policy) and not evictable(decoder, family, linear):
        raise NotImplementedError(
            f"{type(policy).__name__} evicts from the cache of layers that attend to all tokens, and every layer of "
            f"{type(decoder).__name__} sees a window only, which lets go of tokens by itself. Choose a policy that "
            "prunes the prompt"
        )


def eviction_notes(policy: Any, decoder: nn.Module, family: Family, linear: frozenset[int]) -> list[str]:
    """What the user should know of where a policy that evicts does."""
    if not evicts(policy):
        return []
    layers, shared = evictable(decoder, family, linear), family.kv_source(decoder)
    left = [index for index in range(len(decoder.layers)) if index not in {*layers, *linear, *shared}]
    named = ", ".join(map(str, left))
    return [f"the cache of layers that see a window only is left alone: {named}"] if left else []


@dataclass
class Watched:
    """One layer of a forward: by sample which tokens lie where, and what the policy noted.

    places: by sample (S,) int64, the slots of its own tokens.
    """

    index: int
    slots: list[CachedSlots]
    places: list[Tensor]
    notes: list[Any]


class Evictor:
    """Evicts from the cache of one wrapped model, for policies that do."""

    def __init__(self, pruner, model: nn.Module):
        self.pruner, self.head = pruner, model.get_output_embeddings()
        plan = pruner.plan
        self.layers = evictable(pruner.decoder, pruner.family, plan.linear) if evicts(plan.policy) else ()

    def hooks(self) -> list:
        """(module, hook) pairs on the attention of decoder layers, called when it has run."""
        return [(self.pruner.layers[i].self_attn, functools.partial(self._watch, i)) for i in self.layers]

    def _watch(self, index: int, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        if torch.compiler.is_compiling():
            return
        forward, inputs = CURRENT.get(), {**kwargs, "hidden_states": args[0]} if args else kwargs
        if forward is None or forward.owner is not self.pruner or forward.cut:
            return
        if forward.layout is None:
            hear(index, inputs)
            return
        cache = inputs.get("past_key_values")
        if cache is None:
            forward.record.notes = [NO_CACHE]
            return
        lap = Stopwatch.start(inputs["hidden_states"].device)
        forward.cache = cache
        forward.watched.append(self._look(forward, index, module, inputs, cache))
        forward.laps.append(lap.stop(inputs["hidden_states"].device))

    def _look(self, forward: Forward, index: int, attn: nn.Module, inputs: dict, cache) -> Watched:
        device, layer = inputs["hidden_states"].device, cache.layers[index]
        positions, valid, length = _held(layer)
        positions = positions.to(device).expand(len(forward.samples), -1)
        seen = forward.tokens().to(device).gather(1, positions)
        seen = seen if valid is None else seen & valid.to(device)
        stored = tuple(part[:, :, : positions.shape[1]] for part in (layer.keys, layer.values))
        biased = layer.biased if isinstance(layer, PrunedLayer) else forward.stands_for is not None
        seeds = [sample.row.seed for sample in forward.samples]
        ahead = functools.partial(self._tables, forward, index, inputs["hidden_states"])
        sight = CacheSight(attn, inputs, stored, forward.real(device), seen, seeds, biased, ahead)
        found = _visual(forward, length, device).gather(1, positions)
        slots = []
        for b, places in enumerate(sight.places):
            rows = found[b, places]
            mine = (rows >= 0).nonzero().flatten()
            slots.append(CachedSlots(index, mine, rows[mine], **_sinks(forward, index, b)))
        watch, notes = getattr(forward.policy, "watch", None), []
        for b, one in enumerate(slots):
            look = watch is not None and len(one)
            notes.append(watch(CachedLayer(index, one.slots, one.rows, sight, b)) if look else None)
        return Watched(index, slots, sight.places, notes)

    def _tables(self, forward: Forward, index: int, hidden: Tensor, b: int, count: int):
        """Rotary tables of the ``count`` places behind sample ``b``'s prompt."""
        shift = self.pruner.arguments.shift({"past_key_values": forward.cache}, index)
        first = forward.next_place(b) - (0 if shift is None else int(shift[b]))
        return compat.rotary_ahead(self.pruner.decoder, index, hidden[b : b + 1], first, count)

    # ---- when the prompt has been read

    def finish(self, forward: Forward, output: Any) -> CacheRecord | None:
        """Asks the policy what stays, and evicts the rest. output: of the forward."""
        if not forward.watched:
            return None
        device = forward.watched[-1].places[0].device
        lap, held = Stopwatch.start(device), measured_bytes(forward.cache)
        prompts = [self._prompt(forward, b) for b in range(len(forward.samples))]
        if getattr(forward.policy, "lookahead", None):
            prompts = self._ahead(forward, prompts, output)
        answers = self._answers(forward, forward.policy.evict, prompts)
        kept = []
        for i, watched in enumerate(forward.watched):
            mine = [None if answer is None else answer.layers[i] for answer in answers]
            kept.append([self._rows(slots, one) for slots, one in zip(watched.slots, mine, strict=True)])
            self._evict(forward.cache, watched, mine, forward.fresh)
        forward.laps.append(lap.stop(device))
        notes = list(dict.fromkeys(answer.note for answer in answers if answer is not None and answer.note))
        notes += _of_sinks(forward.watched, kept)
        before = [[len(one) for one in watched.slots] for watched in forward.watched]
        return CacheRecord([watched.index for watched in forward.watched], before, kept, notes, forward.laps, held)

    def _prompt(self, forward: Forward, b: int) -> CachedPrompt | None:
        """What the policy sees of a sample; None where nothing of it can be evicted."""
        layers, sample = [watched.slots[b] for watched in forward.watched], forward.samples[b]
        if not any(map(len, layers)):
            return None

        def stored(i: int) -> tuple[Tensor, Tensor]:
            index = layers[i].index
            check_merges(self.pruner.layers[index].self_attn)
            layer, places = forward.cache.layers[index], forward.watched[i].places[b]
            return layer.keys[b][:, places.to(layer.keys.device)], layer.values[b][:, places.to(layer.values.device)]

        notes, length = [watched.notes[b] for watched in forward.watched], int(sample.row.real.sum())
        return CachedPrompt(layers, notes, stored, len(sample.offered), length, sample.row.seed, sample.memory)

    def _answers(self, forward: Forward, ask, prompts: Sequence[CachedPrompt | None]) -> list[Evictions | None]:
        heads = [forward.cache.layers[watched.index].keys.shape[1] for watched in forward.watched]
        checked = []
        for prompt in prompts:
            answer = None if prompt is None else ask(prompt)
            checked.append(answer and check_evictions(answer, prompt.layers, heads, forward.policy))
        return checked

    def _ahead(self, forward: Forward, prompts: Sequence[CachedPrompt | None], output: Any) -> list:
        """The same prompts with what tokens to come look at, decoded on a copy that the policy has cut down."""
        copies = [prompt and replace(prompt, notes=list(prompt.notes)) for prompt in prompts]
        n = forward.policy.lookahead
        rough, cache = self._answers(forward, forward.policy.glance, copies), copied(forward.cache, n)
        fresh: dict = {}
        for i, watched in enumerate(forward.watched):
            self._evict(cache, watched, [None if one is None else one.layers[i] for one in rough], fresh)
        seen = look_ahead(self.pruner, self.head, forward, cache, output, n)
        return [prompt and replace(prompt, ahead=[layer[b] for layer in seen]) for b, prompt in enumerate(prompts)]

    @staticmethod
    def _rows(slots: CachedSlots, one: Eviction | None) -> Tensor:
        return (slots.rows if one is None else slots.rows[one.keep.to(slots.rows.device)]).cpu()

    def _evict(self, cache: Cache, watched: Watched, answers: Sequence[Eviction | None], fresh: dict) -> None:
        layer = cache.layers[watched.index]
        whole = all(one is None or _is_whole(one, n) for one, n in zip(answers, map(len, watched.slots), strict=True))
        if whole:
            return
        layer = prune_layer(cache, watched.index, layer.keys[:, 0], None, fresh)
        self.pruner.sticky = self.pruner.sticky or isinstance(layer, PrunedStaticLayer)
        total, heads = layer.held()[0].shape[1], layer.keys.shape[1]
        rows = []
        for slots, places, one in zip(watched.slots, watched.places, answers, strict=True):
            stay = torch.ones(heads, total, dtype=torch.bool, device=places.device)
            if one is not None and len(slots):
                mine = places[slots.slots]
                stay[:, mine] = False
                stay.scatter_(1, mine[one.keep.to(mine.device)].expand(heads, -1), True)
            rows.append(stay.nonzero()[:, 1].view(heads, -1))
        index, valid = _padded(rows)
        index = index.to(layer.keys.device)
        parts = (layer.keys, layer.values)
        keys, values = (part.gather(2, index[..., None].expand(*index.shape, part.shape[-1])) for part in parts)
        for b, (slots, places, one) in enumerate(zip(watched.slots, watched.places, answers, strict=True)):
            if one is not None and (one.keys is not None or one.values is not None):
                at = torch.searchsorted(rows[b], places[slots.slots][one.keep].expand(heads, -1).contiguous())
                at = (at + index.shape[2] - rows[b].shape[1]).to(keys.device)
                _put(keys[b], at, one.keys)
                _put(values[b], at, one.values)
        # whatever a head keeps was there for all later queries: one head's places tell as much as another's
        layer.shrink(index[:, 0], None if valid is None else valid.to(index.device), keys, values)


def _visual(forward: Forward, length: int, device: torch.device) -> Tensor:
    """(B, length): which of a sample's visual tokens stands in each column of the conversation, -1 for none."""
    # the same for all layers of a forward
    key = ("visual", length, device)
    if key not in forward.memo:
        table = torch.full((len(forward.samples), length), -1)
        for b, sample in enumerate(forward.samples):
            columns = sample.row.columns[sample.offered] + length - forward.length
            table[b, columns] = torch.arange(len(sample.offered))
        forward.memo[key] = table.to(device)
    return forward.memo[key]


def _sinks(forward: Forward, index: int, b: int) -> dict[str, Any]:
    """Which visual tokens of sample ``b`` are attention sinks at the input of a layer, and what becomes of them."""
    if forward.sinks is None or index < FIRST_LAYER:
        return {}
    hidden = forward.seen(forward.entering)[b]
    found = forward.sinks.detector.find(hidden[forward.samples[b].visual.to(hidden.device)])
    return {"sinks": found, "sink_mode": forward.sinks.mode}


def _of_sinks(watched: Sequence[Watched], kept: Sequence[Sequence[Tensor]]) -> list[str]:
    """How many sinks there were, and how many stay, in a sentence; nothing where none were looked for."""
    total = left = 0
    looked = False
    for layer, rows in zip(watched, kept, strict=True):
        for one, stay in zip(layer.slots, rows, strict=True):
            if one.sinks is not None:
                sinks, looked = one.rows[one.sinks].cpu(), True
                total, left = total + len(sinks), left + int(torch.isin(sinks, stay).sum())
    where = f"in the layers from {FIRST_LAYER} on, {total} visual tokens are sinks"
    return [f"{where}, of which {left} were kept"] if looked else []


def _held(layer) -> tuple[Tensor, Tensor | None, int]:
    if isinstance(layer, PrunedLayer):
        return layer.held()
    length = int(layer.get_seq_length())
    return torch.arange(length, device=layer.keys.device)[None], None, length


def _is_whole(one: Eviction, n: int) -> bool:
    return one.keep.shape[-1] == n and one.keys is None and one.values is None


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Rows (H, K_b) of unequal length as one (B, H, K), pads on the left, and (B, K) which are none; None: all."""
    most = max(row.shape[1] for row in rows)
    index = torch.stack([nn.functional.pad(row, (most - row.shape[1], 0)) for row in rows])
    if all(row.shape[1] == most for row in rows):
        return index, None
    counts = torch.tensor([row.shape[1] for row in rows], device=index.device)
    return index, torch.arange(most, device=index.device)[None] >= most - counts[:, None]


def _put(rows: Tensor, at: Tensor, new: Tensor | None) -> None:
    """Writes ``new`` (H, K, d) into rows (H, P, d) at places (H, K)."""
    if new is not None:
        rows.scatter_(1, at[..., None].expand(*at.shape, rows.shape[-1]), new.to(rows))
