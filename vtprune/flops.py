"""What a prompt costs the decoder, from its config: FLOPs, bytes of keys and values, and FastV's figure."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from vtprune import flops_layers, flops_linear
from vtprune.layer_sizes import has_latents, heads, number, refuse_unstored, sizes_of, stored_width, width

Length = int | tuple[int, int]
"""Tokens that a layer processes; a pair (attention, MLP) where a site lies inside the layer."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, 2 for each multiply-accumulate; norms, rotary, softmax and embedding are not counted.

    linear:           matrices applied to tokens: projections, MLPs, convolutions, the head.
    attention:        QK^T and PV in full: every query with every key of its call, masked or not. Of gated delta nets
                      what a prefill computes in chunks, their triangular solves aside.
    attention_causal: QK^T and PV of the pairs that the mask allows: key not after query; in a vision tower: same image.
                      Sliding windows, and image blocks that see both ways, are not looked at. Of gated delta nets what
                      takes a state from token to token.
    """

    linear: int = 0
    attention: int = 0
    attention_causal: int = 0

    @property
    def total(self) -> int:
        """With attention in full, as ``torch.utils.flop_counter`` counts it."""
        return self.linear + self.attention

    @property
    def total_causal(self) -> int:
        """With attention over the allowed pairs, which a kernel that skips masked blocks comes close to."""
        return self.linear + self.attention_causal

    def __add__(self, other: "Flops") -> "Flops":
        if not isinstance(other, Flops):
            return NotImplemented
        return Flops(
            self.linear + other.linear,
            self.attention + other.attention,
            self.attention_causal + other.attention_causal,
        )


def config_of(text_config: Any, index: int) -> Any:
    """The config that says what layer ``index`` is like: one of its own where layers differ."""
    return flops_layers.layer_config(text_config, index) if flops_layers.is_layered(text_config) else text_config


def _pairs(lengths: Sequence[Length], layers: int) -> list[tuple[int, int]]:
    """(attention, MLP) tokens of each layer."""
    if len(lengths) != layers:
        raise ValueError(f"one length for each of the {layers} decoder layers is needed; got {len(lengths)}")
    pairs = []
    for length in lengths:
        pair = tuple(map(operator.index, length if isinstance(length, tuple) else (length, length)))
        if len(pair) != 2 or min(pair) < 0:
            raise ValueError(f"a length is an int >= 0 or a pair (attention, MLP) of them; got {length}")
        pairs.append(pair)
    return pairs


def decoder_flops(
    text_config: Any,
    lengths: Sequence[Length],
    *,
    past: Sequence[int] | None = None,
    mlp_matrices: int | None = None,
) -> Flops:
    """FLOPs of all decoder layers in one forward of ONE sample; the head is ``lm_head_flops``.

    lengths:      (layers,) tokens that each layer processes; a pair (attention, MLP) where a site lies inside it.
                  The sample's own tokens: what is spent on padding is not counted.
    past:         (layers,) keys that each layer finds in its cache, to which new tokens attend too; none by default.
    mlp_matrices: 3 with a gate, 2 without; by default 2 for the model types in ``layer_sizes.UNGATED``.
    Raises:       ValueError for lengths that do not fit the config, NotImplementedError for experts or latent
                  attention of unknown models, for shared attention, for per-layer inputs, and for linear layers, except
                  those of ``flops_linear.KNOWN``.
    """
    return decoder_counter(text_config, mlp_matrices=mlp_matrices)(lengths, past)


def decoder_counter(
    text_config: Any, *, mlp_matrices: int | None = None
) -> Callable[[Sequence[Length], Sequence[int] | None], Flops]:
    """``decoder_flops`` of one config, for whoever asks for many lengths. Raises as that does."""
    if flops_linear.is_hybrid(text_config):
        return _hybrid_counter(text_config)
    if flops_layers.is_layered(text_config):
        return _layered_counter(text_config)
    sizes = sizes_of(text_config, mlp_matrices)
    nothing, both = (0,) * sizes.layers, sizes.queries + sizes.values

    def count(lengths: Sequence[Length], past: Sequence[int] | None = None) -> Flops:
        pairs = _pairs(lengths, sizes.layers)
        before = nothing if past is None else [n for n, _ in _pairs(past, sizes.layers)]
        linear = sum(sizes.token * n + mlp * m for (n, m), mlp in zip(pairs, sizes.mlp, strict=True))
        linear += sum(sizes.key * (p + n) for (n, _), p in zip(pairs, before, strict=True))
        scores = sum(n * (p + n) for (n, _), p in zip(pairs, before, strict=True))
        allowed = sum(n * p + n * (n + 1) // 2 for (n, _), p in zip(pairs, before, strict=True))
        return Flops(2 * linear, 2 * both * scores, 2 * both * allowed)

    return count


def _hybrid_counter(text_config: Any) -> Callable[[Sequence[Length], Sequence[int] | None], Flops]:
    # a config looks every name up in a map of others first, which takes longer than the counting
    names = {name: getattr(text_config, name) for name in vars(text_config)}
    text_config = SimpleNamespace(**{**names, "model_type": text_config.model_type})
    layers = text_config.num_hidden_layers

    def count(lengths: Sequence[Length], past: Sequence[int] | None = None) -> Flops:
        pairs, held = _pairs(lengths, layers), [n for n, _ in _pairs([0] * layers if past is None else past, layers)]
        return flops_linear.hybrid_flops(text_config, pairs, held, decoder_flops)

    return count


def _layered_counter(text_config: Any) -> Callable[[Sequence[Length], Sequence[int] | None], Flops]:
    counters = [decoder_counter(one) for one in flops_layers.layer_configs(text_config)]

    def count(lengths: Sequence[Length], past: Sequence[int] | None = None) -> Flops:
        pairs = _pairs(lengths, len(counters))
        held = [n for n, _ in _pairs([0] * len(counters) if past is None else past, len(counters))]
        found = (one([pair], [before]) for one, pair, before in zip(counters, pairs, held, strict=True))
        return sum(found, Flops())

    return count


def decode_flops(text_config: Any, lengths: Sequence[Length], steps: int, *, mlp_matrices: int | None = None) -> Flops:
    """FLOPs of the decoder layers for ``steps`` one-token forwards on the cache that a prefill of ``lengths`` left.

    ``generate`` with n new tokens makes n - 1 such steps: the first token comes from the prefill. In each, the token
    attends to the cache and to itself. The head is ``lm_head_flops(text_config, steps)``.
    """
    if steps < 0:
        raise ValueError(f"steps is the number of one-token forwards, 0 or more; got {steps}")
    if flops_linear.is_hybrid(text_config):
        pairs = _pairs(lengths, text_config.num_hidden_layers)
        return flops_linear.hybrid_decode_flops(text_config, pairs, steps, decode_flops)
    if flops_layers.is_layered(text_config):
        ones = flops_layers.layer_configs(text_config)
        held = zip(ones, _pairs(lengths, len(ones)), strict=True)
        return sum((decode_flops(one, [pair], steps) for one, pair in held), Flops())
    sizes = sizes_of(text_config, mlp_matrices)
    keys = sum(steps * n + steps * (steps + 1) // 2 for n, _ in _pairs(lengths, sizes.layers))
    linear = steps * (sizes.token * sizes.layers + sum(sizes.mlp)) + sizes.key * keys
    attention = 2 * (sizes.queries + sizes.values) * keys
    return Flops(2 * linear, attention, attention)


def lm_head_flops(text_config: Any, positions: int = 1) -> Flops:
    """FLOPs of the logits of ``positions`` tokens: 1 in a prefill of ``generate``, all of them in a plain forward."""
    return Flops(2 * positions * number(text_config, "hidden_size") * number(text_config, "vocab_size"))


def attention_rows_flops(
    config: Any,
    n_rows: int,
    n_keys: int,
    peek: bool = False,
    *,
    query_rows: int | None = None,
    value_rows: int = 0,
) -> Flops:
    """FLOPs of the signal that reads ``n_rows`` rows of a layer's attention: their queries, and QK^T without PV.

    config:     of the decoder, or of a vision tower.
    n_keys:     keys that each row is compared with.
    peek:       the layer has not run yet, so its keys are projected for the signal as well.
    query_rows: rows whose query is projected for the signal: ``n_rows`` by default, 0 where the layer's own queries are
                seen, all of them where a peek runs the whole projection.
    value_rows: rows whose value is projected as a by-product of the peek.
    Where keys are made of latents, ``query_rows`` go through all projections and stored latents are expanded anew.
    """
    query_rows = n_rows if query_rows is None else query_rows
    if has_latents(config):
        sizes = sizes_of(config)
        before = sizes.token - sizes.values * width(config) + sizes.key  # all but the output
        linear = before * query_rows + (0 if peek else sizes.key * n_keys)
        scores = 2 * n_rows * n_keys * sizes.queries
        return Flops(2 * linear, scores, scores)
    n_query, n_key, size = heads(config)
    gated = getattr(config, "model_type", None) in flops_linear.GATED_QUERIES
    projected = query_rows * n_query * (1 + gated) + value_rows * n_key + (n_keys * n_key if peek else 0)
    scores = 2 * n_rows * n_keys * n_query * size
    return Flops(2 * width(config) * size * projected, scores, scores)


def kv_bytes(text_config: Any, lengths: Sequence[Length], dtype_size: int) -> int:
    """Bytes of the keys and values of ONE sample in all layers, padding aside.

    lengths:    (layers,) cached tokens; of a pair (attention, MLP) the first.
    dtype_size: bytes per number: 2 for bfloat16 and float16, 4 for float32.
    Latent attention stores one latent and one rotated key for all heads, as of transformers 5.23.
    Layers with a sliding window count in full, as a pruned cache keeps them; an unpruned one may hold less. Layers that
    keep a state have no keys and values: see ``flops_linear.state_bytes_of``. Nor have those that read another one's.
    """
    if flops_linear.is_hybrid(text_config):
        held = [_pairs(lengths, text_config.num_hidden_layers)[i] for i in flops_linear.attending(text_config)]
        return kv_bytes(flops_linear.attention_config(text_config), held, dtype_size)
    if flops_layers.is_layered(text_config):
        pairs = _pairs(lengths, number(text_config, "num_hidden_layers"))
        stored = flops_layers.storing(text_config)
        return sum(kv_bytes(flops_layers.layer_config(text_config, i), [pairs[i]], dtype_size) for i in stored)
    refuse_unstored(text_config)
    tokens = sum(n for n, _ in _pairs(lengths, number(text_config, "num_hidden_layers")))
    return stored_width(text_config) * tokens * dtype_size


def fastv_flops(hidden: int, intermediate: int, lengths: Sequence[Length]) -> int:
    """FastV's figure: the sum over layers of 4 n d^2 + 2 n^2 d + 2 n d m, for comparison with papers and nothing else.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764, section 4. It counts
    multiply-accumulates (half of the FLOPs), takes every head for a key head (too much under GQA) and the MLP for two
    matrices (too little where there is a gate).

    lengths: tokens of each layer that is meant, as for ``decoder_flops``.
    """
    d, m = hidden, intermediate
    return sum(4 * n * d**2 + 2 * n**2 * d + 2 * k * d * m for n, k in _pairs(lengths, len(lengths)))
