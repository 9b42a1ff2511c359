"""What the unwrapped model computes of one prompt, read with eager attention: the oracle of the policies of the cache.

Nothing here goes through vtprune, and a sample is always alone, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtprune
from tests import tiny
from tests.evicted import kind_of
from tests.masked import model_of
from tests.newer.base import mostly_slow
from tests.policies.contract import samples_of


@cache
def eager_of(family: str) -> nn.Module:
    return tiny.build(family, "eager", torch.float64)


@dataclass(frozen=True)
class ByHand:
    """A prompt of S tokens, of which N are visual; tensors by decoder layer.

    attention: (H, S, S). keys: (H_kv, S, d), rotated. values: (H_kv, S, d_v). normed: (S, D) what the attention gets.
    visual:    (N,) columns. next: the position of the token that will follow.
    layers:    those that see everything and have keys of their own. heads: key heads of the cache; 1 of latents, of
               which the H keys and values here are made.
    """

    attention: dict[int, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    normed: dict[int, Tensor]
    visual: Tensor
    next: int
    layers: list[int]
    heads: int


@cache
def read(family: str, kind: str, b: int) -> ByHand:
    """Sample ``b`` of ``samples_of(family, kind)``, in float64."""
    return read_sample(family, samples_of(family, kind)[b])


def read_sample(family: str, sample: tiny.Sample) -> ByHand:
    model, inputs = eager_of(family), tiny.collate(family, [sample])
    with inputs_of_attention(model) as normed:
        out = tiny.greedy(model, inputs, 1, output_attentions=True)
    hand = read_out(model, inputs, out, normed)
    if not hasattr(tiny.text_model(model).layers[hand.layers[0]].self_attn, "expand_kv"):
        return hand
    # what lies there are latents; heads are made of them in every step
    with heard(model_of(family)) as asked:
        tiny.greedy(model_of(family), inputs, 1)
    keys, values = ({i: asked[i][0][which][0] for i in hand.layers} for which in (1, 2))
    return replace(hand, keys=keys, values=values)


@contextmanager
def inputs_of_attention(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """By layer (S, D) what attention was given for the one sample of the last forward inside the block."""
    normed = {}

    def listen(i: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        normed[i] = (args[0] if args else kwargs["hidden_states"])[0]

    hooks = [
        layer.self_attn.register_forward_pre_hook(partial(listen, i), with_kwargs=True)
        for i, layer in enumerate(tiny.text_model(model).layers)
        if hasattr(layer, "self_attn")
    ]
    try:
        yield normed
    finally:
        for hook in hooks:
            hook.remove()


def read_out(model: nn.Module, inputs: tiny.Batch, out, normed: dict[int, Tensor]) -> ByHand:
    """One prompt, or the last turn of one: ``generate``'s ``out`` of one token with attention."""
    text, family = tiny.text_model(model), inputs.family
    layers = [i for i in sorted(normed) if kind_of(model, i) not in ("sliding_attention", "chunked_attention")]
    layers = [i for i in layers if not getattr(text.layers[i].self_attn, "is_kv_shared_layer", False)]
    held = out.past_key_values.layers
    shift = getattr(tiny.base_model(model), "rope_deltas", None) if tiny.has_mrope(family) else None
    first = 1 if family == "paligemma" else 0
    return ByHand(
        {i: one[0] for i, one in zip(sorted(normed), out.attentions[0], strict=True)},
        {i: held[i].keys[0] for i in layers},
        {i: held[i].values[0] for i in layers},
        normed,
        tiny.visual(inputs)[0].nonzero().flatten(),
        inputs["input_ids"].shape[1] + first + (0 if shift is None else int(shift)),
        layers,
        held[layers[0]].keys.shape[1],
    )


def grouped(attention: Tensor, heads: int) -> Tensor:
    """(H_kv, ..., S) of (H, ..., S): the mean of the query heads that share a key head."""
    return torch.stack([part.mean(0) for part in attention.split(len(attention) // heads)])


def best(score: Tensor, k: int) -> Tensor:
    """(..., k) places of the largest, ascending."""
    if score.dim() > 1:
        return torch.stack([best(row, k) for row in score])
    return torch.tensor(sorted(sorted(range(len(score)), key=lambda i: -score[i].item())[:k]))


CASES = [("llava", "image"), ("qwen2_5_vl", "image"), ("gemma3", "image"), ("qwen2_5_vl", "video")]
MORE = ["qwen3_vl", "paligemma", "glm4v", "gemma3n", "deepseek_vl", "ernie4_5_vl_moe", "llama4", "qwen3_5", "internvl"]
LATENT = "kimi_k25"
"""Whose cache holds latents that all heads share."""


def everywhere(usual=CASES, without=()) -> list:
    """Values for ``pytest.mark.parametrize(("family", "kind"), ...)``: these, and slow ones."""
    others = [(family, "image") for family in (*MORE, LATENT) if family not in without]
    others = [case for case in others if case not in usual]
    return mostly_slow([*usual, *others], usual)


def assert_kept(policy: str, family: str, expected, kind: str = "image", **options) -> list:
    """Runs ``policy`` on the ragged batch of two and on each sample alone; ``expected(by_hand, layer, k)`` says what
    stays of a layer that keeps k. Returns how many each layer keeps, by sample."""
    model, samples, counts = model_of(family), samples_of(family, kind), []
    numbers = range(len(samples))
    for batch in (list(numbers), *([number] for number in numbers)):
        cached = kept_by(model, tiny.collate(family, [samples[number] for number in batch]), policy, **options)
        for b, number in enumerate(batch):
            hand = read(family, kind, number)
            assert cached.layers == hand.layers
            for i, layer in enumerate(cached.layers):
                got = cached.kept[i][b]
                wanted = expected(hand, layer, got.shape[-1])
                assert torch.equal(got, wanted), (
                    f"sample {number} of {len(batch)}, layer {layer}: {got} and not {wanted}"
                )
            counts.append([one[b].shape[-1] for one in cached.kept])
    half = len(samples)
    assert counts[:half] == counts[half:]
    return counts[:half]


def kept_by(model: nn.Module, inputs: dict, policy: str, **options):
    """The record of a prefill; ``kept_and_cache`` gives the cache too."""
    return kept_and_cache(model, inputs, policy, **options)[0]


def kept_and_cache(model: nn.Module, inputs: dict, policy: str, **options):
    with vtprune.pruned(model, policy, **options) as report:
        out = tiny.greedy(model, inputs, 1)
        return report.last.cached, out.past_key_values


@contextmanager
def heard(model: nn.Module) -> Iterator[dict[int, list[tuple[Tensor, Tensor, Tensor]]]]:
    """By layer what each forward inside the block compares: queries (B, H, Q, d) times the factor on products, keys
    and values (B, H_kv, S, d)."""
    usual, found = ALL_ATTENTION_FUNCTIONS["sdpa"], {}
    owner = {id(getattr(layer, "self_attn", None)): i for i, layer in enumerate(tiny.text_model(model).layers)}

    def listen(module, query, key, value, *args, **more):
        if id(module) in owner:
            scaling = more.get("scaling") or query.shape[-1] ** -0.5
            found.setdefault(owner[id(module)], []).append((query * scaling, key, value))
        return usual(module, query, key, value, *args, **more)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = listen
    try:
        yield found
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual


def stays(hand: ByHand, kept: Tensor) -> Tensor:
    """(H_kv or 1, S - N + K) the tokens in the cache of a layer that kept these visual tokens, ascending."""
    rows = []
    for row in kept.reshape(-1, kept.shape[-1]):
        gone = set(hand.visual.tolist()) - set(hand.visual[row].tolist())
        rows.append(torch.tensor([i for i in range(len(hand.normed[hand.layers[0]])) if i not in gone]))
    return torch.stack(rows)


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """(H_kv, K, d) of (H_kv, S, d), rows (H_kv or 1, K)."""
    return torch.stack([head[row] for head, row in zip(x, rows.expand(len(x), -1), strict=True)])
