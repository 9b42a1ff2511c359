"""Decoders whose layers differ in their attention (Gemma 3n, Gemma 4): a config for each layer, to be counted alone."""

from types import SimpleNamespace
from typing import Any

from vtprune.compat import kv_sources, layer_heads

LAYERED = ("gemma3n_text", "gemma4_text", "gemma4_unified_text")
"""Model types of text configs that are counted layer by layer."""


def is_layered(config: Any) -> bool:
    """Whether a text config is counted here."""
    return getattr(config, "model_type", None) in LAYERED


def storing(config: Any) -> list[int]:
    """Its layers with keys and values of their own."""
    return [index for index in range(config.num_hidden_layers) if index not in kv_sources(config)]


def layer_config(config: Any, index: int) -> SimpleNamespace:
    """A config of one attention layer and its dense MLP, for who counts those.

    keys_are_values: whether one projection gives both. beside_mlp: weights that meet a token beside the dense MLP:
    those of the router and of the experts that the token is sent to.
    """
    queries, keys, size = layer_heads(config, index)
    full = config.layer_types[index] == "full_attention"
    beside = 0
    if getattr(config, "enable_moe_block", False):
        beside = config.hidden_size * (config.num_experts + 3 * config.top_k_experts * config.moe_intermediate_size)
    return SimpleNamespace(
        model_type=f"layer {index} of {config.model_type}",
        num_hidden_layers=1,
        hidden_size=config.hidden_size,
        num_attention_heads=queries,
        num_key_value_heads=keys,
        head_dim=size,
        intermediate_size=config.intermediate_size,
        keys_are_values=full and getattr(config, "attention_k_eq_v", False),
        beside_mlp=beside,
    )


def layer_configs(config: Any) -> list[SimpleNamespace]:
    """A config for each layer. Raises NotImplementedError where layers do more than attention and an MLP."""
    more = {
        "num_kv_shared_layers": "layers without keys of their own, of which a prefill of generate computes one row",
        "hidden_size_per_layer_input": "inputs of their own for every layer, made of the unpruned prompt",
    }
    found = [f"{why} ({name})" for name, why in more.items() if getattr(config, name, None)]
    if found:
        raise NotImplementedError(
            f"FLOPs are not known for {config.model_type!r} with {' and '.join(found)}. Measure with "
            "torch.utils.flop_counter.FlopCounterMode instead"
        )
    return [layer_config(config, index) for index in range(config.num_hidden_layers)]
