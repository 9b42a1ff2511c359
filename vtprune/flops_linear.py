"""What decoders cost in which some layers keep a state: gated delta nets (Qwen3.5), short convolutions (LFM2, LFM3).

Attention layers are counted by ``vtprune.flops``; here is what they have beside, and all of the other layers.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

GATED_QUERIES = ("qwen3_5_text", "qwen3_5_moe_text")
KNOWN = (*GATED_QUERIES, "lfm2", "lfm3")
"""Model types of text configs that are counted here."""

LINEAR = ("linear_attention", "conv")
CHUNK = 64
"""Tokens that the gated delta rule computes at once in a prefill; a rest is padded (transformers 5.23)."""

Pairs = Sequence[tuple[int, int]]
"""(attention, MLP) tokens of each layer."""


def is_hybrid(config: Any) -> bool:
    """Whether a text config is counted here."""
    return getattr(config, "model_type", None) in KNOWN


def attending(config: Any) -> list[int]:
    """Its layers with keys and values."""
    return [index for index, kind in enumerate(config.layer_types) if kind not in LINEAR]


def attention_config(config: Any) -> SimpleNamespace:
    """A config of its attention layers alone, without MLPs, for who counts attention."""
    names = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    same = {name: getattr(config, name, None) for name in names}
    alone = {"model_type": f"attention of {config.model_type}", "num_hidden_layers": len(attending(config))}
    return SimpleNamespace(**{**same, **alone}, intermediate_size=0)


def hybrid_flops(config: Any, pairs: Pairs, past: Sequence[int], count: Callable):
    """FLOPs of all layers in one forward of one sample; arguments as of ``decoder_flops``, which ``count`` is."""
    rows = attending(config)
    total = count(attention_config(config), [pairs[i] for i in rows], past=[past[i] for i in rows])
    linear = sum(gate_weights(config) * pairs[i][0] for i in rows) + sum(_mlp(config) * m for _, m in pairs)
    full = least = 0
    for index, kind in enumerate(config.layer_types):
        n = pairs[index][0]
        if kind in LINEAR:
            linear += _mixer(config, kind) * n
            least += _rule(config, kind) * n
            # a step of one token goes from state to state
            full += _rule(config, kind) * n if n == 1 and past[index] else _chunks(config, kind, n)
    return total + type(total)(2 * linear, full, least)


def hybrid_decode_flops(config: Any, pairs: Pairs, steps: int, count: Callable):
    """FLOPs of ``steps`` one-token forwards; arguments as of ``decode_flops``, which ``count`` is."""
    total, rows = count(attention_config(config), [pairs[i] for i in attending(config)], steps), attending(config)
    others = [kind for kind in config.layer_types if kind in LINEAR]
    weights = gate_weights(config) * len(rows) + _mlp(config) * len(pairs)
    weights += sum(_mixer(config, kind) for kind in others)
    rule = steps * sum(_rule(config, kind) for kind in others)
    return total + type(total)(2 * steps * weights, rule, rule)


def state_bytes_of(config: Any, dtype_size: int) -> int:
    """Bytes of the states of ONE sample; they do not grow. What linear attention remembers is in float32."""
    window, memory = 0, 0
    for kind in config.layer_types if is_hybrid(config) else ():
        if kind == "conv":
            window += config.hidden_size * config.conv_L_cache
        elif kind in LINEAR:
            window += _channels(config) * config.linear_conv_kernel_dim
            memory += config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    return window * dtype_size + memory * 4


def gate_weights(config: Any) -> int:
    """Weights of an attention layer that gate its output: with the queries, of their width, or one for each head."""
    model_type = getattr(config, "model_type", None)
    if model_type in GATED_QUERIES:
        return config.hidden_size * config.num_attention_heads * config.head_dim
    return config.hidden_size * config.num_attention_heads if getattr(config, "use_attention_gate", False) else 0


def _channels(config: Any) -> int:
    """Queries, keys and values of a gated delta net, side by side."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    return 2 * keys + config.linear_num_value_heads * config.linear_value_head_dim


def _mixer(config: Any, kind: str) -> int:
    """Weights of a linear layer that meet each token: projections and convolution."""
    hidden = config.hidden_size
    if kind == "conv":
        return (3 * hidden + config.conv_L_cache) * hidden + hidden * hidden
    heads, channels = config.linear_num_value_heads, _channels(config)
    values = heads * config.linear_value_head_dim
    return hidden * (channels + 2 * values + 2 * heads) + channels * config.linear_conv_kernel_dim


def _rule(config: Any, kind: str) -> int:
    """FLOPs of one token from state to state: what the state says to its key, the correction, what it says now."""
    if kind == "conv":
        return 0
    return 6 * config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim


def _chunks(config: Any, kind: str, n: int) -> int:
    """FLOPs of n tokens in whole chunks: the same between chunks, and pairs of tokens within each."""
    if kind == "conv":
        return 0
    pairs = config.linear_num_value_heads * (4 * config.linear_key_head_dim + 2 * config.linear_value_head_dim)
    return -(-n // CHUNK) * (CHUNK * _rule(config, kind) + CHUNK**2 * pairs)


def _mlp(config: Any) -> int:
    """Weights that meet a token in a layer's MLP; of experts those that it is sent to, and of their router."""
    hidden = config.hidden_size
    if config.model_type == "qwen3_5_moe_text":
        met = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
        return 3 * hidden * met + hidden * (config.num_experts + 1)
    width = config.intermediate_size
    if getattr(config, "block_auto_adjust_ff_dim", False):
        width = int(2 * width / 3)
        if config.block_ffn_dim_multiplier is not None:
            block = config.block_multiple_of
            width = -(-int(config.block_ffn_dim_multiplier * width) // block) * block
    return 3 * hidden * width
