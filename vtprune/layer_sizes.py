"""What the layers of a decoder weigh, from its config: dense or with experts, with keys of their own or latent ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNGATED = frozenset(
    "apertus arcee biogpt gpt_neox jais2 nanochat nemotron opt persimmon phi starcoder2".split()
)  # text models whose MLP is two matrices, up and down; all others have a gate as a third

# what a config says of a decoder that is more than attention and a dense MLP
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_LATENT = "kv_lora_rank"
_ELSEWHERE = ("num_kv_shared_layers", "cross_attention_layers")
_SPECIAL = (
    *(*_ELSEWHERE, "hidden_size_per_layer_input", "attn_output_gate"),
    *("attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp"),
)
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def _qwen_sparse(config: Any, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


def _deepseek_sparse(config: Any, layer: int) -> bool:
    return layer >= config.first_k_dense_replace


SPARSE: dict[str, Callable[[Any, int], bool]] = {
    "qwen3_vl_moe_text": _qwen_sparse,
    "qwen3_omni_moe_text": _qwen_sparse,
    "glm4v_moe_text": _deepseek_sparse,
    "deepseek_v3": _deepseek_sparse,
    "mistral4": _deepseek_sparse,
    "aria_text": lambda config, layer: True,
}
"""Which layers send tokens to experts: by model type of the text config, (config, layer) -> bool. The experts of these
have three matrices, and shared ones of the same width see every token."""

LATENT = frozenset({"deepseek_v3", "mistral4"})
"""Model types of text configs whose cache holds latents, from which every forward makes all keys and values anew."""


@dataclass(frozen=True)
class Sizes:
    """Widths and weights of the layers of one decoder.

    queries: query heads x the size by which a query is compared. values: query heads x the size of a value.
    token:   weights of attention that meet each new token. key: those that meet each key, also those from the cache.
    mlp:     of each layer, weights that meet a token; of experts those that it is sent to, and of their router.
    """

    queries: int
    values: int
    token: int
    key: int
    mlp: tuple[int, ...]

    @property
    def layers(self) -> int:
        return len(self.mlp)


def number(config: Any, *names: str) -> int:
    """The first of ``names`` that the config has, as an int."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ValueError(
        f"a text config with an integer {' or '.join(names)} is needed; "
        f"got a {type(config).__name__} without: pass model.config.get_text_config()"
    )


def width(config: Any) -> int:
    """Width of the hidden states; in Qwen2-VL's tower ``hidden_size`` is that of its output."""
    return number(config, "embed_dim", "hidden_size")


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads and head size; a config without ``num_key_value_heads`` has as many as query heads."""
    n_query = number(config, "num_attention_heads", "num_heads")
    n_key = getattr(config, "num_key_value_heads", None) or n_query
    size = getattr(config, "head_dim", None) or width(config) // n_query
    return n_query, n_key, size


def has_experts(config: Any) -> bool:
    """Whether some of its layers send tokens to experts."""
    return any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)


def has_latents(config: Any) -> bool:
    """Whether keys and values are made of latents."""
    return bool(getattr(config, _LATENT, None))


def refuse_unknown(config: Any) -> None:
    """Raises NotImplementedError for layers whose weights the config does not tell in a way that is known here."""
    model_type = getattr(config, "model_type", type(config).__name__)
    found = [] if model_type in SPARSE else [name for name in _EXPERTS if (getattr(config, name, None) or 0) > 1]
    found += [_LATENT] if has_latents(config) and model_type not in LATENT else []
    found += [name for name in _SPECIAL if getattr(config, name, None)]
    found += sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if found:
        raise NotImplementedError(
            f"FLOPs and bytes are known for decoders of attention and one dense MLP per layer, and for the experts of "
            f"{', '.join(sorted(SPARSE))}; {model_type!r} has {', '.join(found)}. "
            "Measure with torch.utils.flop_counter.FlopCounterMode instead"
        )


def refuse_unstored(config: Any) -> None:
    """Raises NotImplementedError for layers of which it is not known what they store of a token."""
    model_type = getattr(config, "model_type", type(config).__name__)
    found = [_LATENT] if has_latents(config) and model_type not in LATENT else []
    found += [name for name in _ELSEWHERE if getattr(config, name, None)]
    found += sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if found:
        raise NotImplementedError(
            f"bytes are known for decoders of which every layer stores its own keys and values; {model_type!r} has "
            f"{', '.join(found)}. Look at the cache instead"
        )


def sizes_of(config: Any, mlp_matrices: int | None = None) -> Sizes:
    """The sizes of a text config. Raises NotImplementedError as ``refuse_unknown``, ValueError for no text config."""
    refuse_unknown(config)
    mlp = _mlp(config, mlp_matrices)
    if has_latents(config):
        return _latent(config, mlp)
    n_query, n_key, size = heads(config)
    queries, keys = n_query * size, n_key * size
    # one projection may give keys and values
    fed = (1 if getattr(config, "keys_are_values", False) else 2) * keys
    return Sizes(queries, queries, width(config) * (2 * queries + fed), 0, mlp)


def _latent(config: Any, mlp: tuple[int, ...]) -> Sizes:
    """Multi-head latent attention: one latent and one rotated key for all heads are stored, and expanded when read."""
    hidden, n_query = width(config), config.num_attention_heads
    rank, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    queries = n_query * (config.qk_nope_head_dim + rotated)
    values = n_query * config.v_head_dim
    narrow = config.q_lora_rank
    projected = hidden * queries if narrow is None else narrow * (hidden + queries)
    expanded = rank * (n_query * config.qk_nope_head_dim + values)
    token = projected + hidden * (rank + rotated) + values * hidden
    return Sizes(queries, values, token, expanded, mlp)


def stored_width(config: Any) -> int:
    """Numbers that the cache of a layer holds of each token."""
    if has_latents(config):
        return config.kv_lora_rank + config.qk_rope_head_dim
    _, n_key, size = heads(config)
    return 2 * n_key * size


def _mlp(config: Any, mlp_matrices: int | None) -> tuple[int, ...]:
    """Weights that meet a token in each layer's MLP."""
    if mlp_matrices is None:
        mlp_matrices = 2 if getattr(config, "model_type", None) in UNGATED else 3
    hidden, layers = width(config), number(config, "num_hidden_layers")
    dense = mlp_matrices * hidden * number(config, "intermediate_size", "ffn_dim")
    if not has_experts(config):
        return (dense + getattr(config, "beside_mlp", 0),) * layers
    shared = getattr(config, "n_shared_experts", None) or getattr(config, "moe_num_shared_experts", None) or 0
    met = number(config, "num_experts_per_tok", "moe_topk") + shared
    size = number(config, "moe_intermediate_size", "intermediate_size")
    sparse = 3 * hidden * size * met + hidden * number(config, *_EXPERTS)
    return tuple(sparse if SPARSE[config.model_type](config, layer) else dense for layer in range(layers))
