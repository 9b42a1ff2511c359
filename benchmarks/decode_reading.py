"""A prompt read into a cache, and what a model says after it: logits along given words, and greedy answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

Words = Sequence[int]
"""Token ids."""


@dataclass(frozen=True)
class Memory:
    """What is left of B prompts.

    places: (B,) int64, the position of the next token of each. mask: (B, L), None where nothing was padded.
    logits: (B, V) of the last token of each.
    """

    cache: Cache
    places: Tensor
    mask: Tensor | None
    logits: Tensor


@torch.no_grad()
def read(model: nn.Module, inputs: Mapping[str, Tensor]) -> Memory:
    """Reads prompts, padded on the left. What a wrapped model evicts is gone then."""
    cache = DynamicCache(config=model.config.get_text_config())
    mask, more = inputs["attention_mask"], {}
    if not _grids(model):
        # a forward by itself would count what was padded
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(**inputs, **more, past_key_values=cache, use_cache=True, logits_to_keep=1)
    places = mask.sum(1)
    if _grids(model):
        # grids take fewer positions than tokens
        places = places + model.model.rope_deltas.flatten().to(places.device)
    return Memory(cache, places, None if mask.all() else mask, output.logits[:, -1].float())


def _grids(model: nn.Module) -> bool:
    """Whether positions have three coordinates."""
    return hasattr(model.model, "rope_deltas")


@torch.no_grad()
def along(model: nn.Module, memory: Memory, rows: Sequence[int], words: Sequence[Words]) -> list[Tensor]:
    """(1 + T, V) float32 for each text of T words: the logits before its first word, and after each of them.

    rows: after which of the prompts each is said. The memory stays as it is, and the texts do not see each other.
    """
    index = torch.tensor(rows, device=memory.logits.device)
    first, longest = memory.logits[index], max(map(len, words))
    if not longest:
        return list(first[:, None])
    cache = copy.deepcopy(memory.cache)
    cache.batch_select_indices(index)
    # what fills up the shorter ones comes last, where nothing looks back at it
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in words], device=index.device)
    places = memory.places[index][:, None] + torch.arange(longest, device=index.device)
    more = {"position_ids": places.expand(3, -1, -1) if _grids(model) else places}
    if memory.mask is not None:
        more["attention_mask"] = torch.cat([memory.mask[index], memory.mask.new_ones(ids.shape)], 1)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, **more).logits.float()
    return [torch.cat([a[None], b[: len(text)]]) for a, b, text in zip(first, logits, words, strict=True)]


def greedy(
    model: nn.Module,
    memory: Memory,
    rows: Sequence[int],
    words: Sequence[Words],
    end: int,
    most: int,
) -> list[list[int]]:
    """The greedy answer after each text, ``end`` included if it comes within ``most`` tokens."""
    said: list[list[int]] = [[] for _ in rows]
    for _ in range(most):
        going = [i for i, answer in enumerate(said) if end not in answer]
        if not going:
            break
        texts = [[*words[i], *said[i]] for i in going]
        for i, logits in zip(going, along(model, memory, [rows[i] for i in going], texts), strict=True):
            said[i].append(int(logits[-1].argmax()))
    return said


def divergence(expected: Tensor, found: Tensor) -> float:
    """The Kullback-Leibler divergence of next-token distributions from those expected, mean over places, in nats.

    Both are logits (T, V).
    """
    p, q = (logits.double().log_softmax(-1) for logits in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())
