"""Models that cannot be pruned yet are refused by ``wrap``, with the reason, before anything is hooked."""

import inspect
from collections.abc import Mapping

from torch import Tensor, nn

from vtprune import compat
from vtprune.families.base import Family
from vtprune.masks import check_takes_bias
from vtprune.narrow import knows
from vtprune.refused import check_layers

_BOTH = ("hybrid", "mamba", "recurrent")
"""Words in the kinds of layers that attend and keep a state, or are of no kind that was tried."""

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


def check_proportional(policy: object, model: nn.Module, family: Family) -> None:
    """Raises NotImplementedError for a policy whose ``proportional`` is True in a model whose attention cannot add."""
    if getattr(policy, "proportional", False):
        check_takes_bias(compat.attention_kind(family.decoder(model).config))


def check_model(model: nn.Module, family: Family) -> None:
    """Raises NotImplementedError for decoders whose tokens cannot be dropped layer by layer."""
    if hasattr(model, "_orig_mod"):
        raise NotImplementedError(
            "this is a compiled model: torch.compile would freeze one selection into the graph. Wrap the original "
            "model (model._orig_mod) and let generate(..., cache_implementation='static') compile the decode steps"
        )
    decoder = family.decoder(model)
    name, config = type(decoder).__name__, decoder.config
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList) or not len(decoder.layers):
        raise NotImplementedError(f"{name} has no list of decoder layers called `layers`; vtprune prunes between those")
    check_layers(decoder)
    linear = family.linear_layers(model)
    others = {_kind(decoder, i) for i, layer in enumerate(decoder.layers) if _is_other(decoder, layer, i, i in linear)}
    if others or len(linear) == len(decoder.layers):
        what = ", ".join(sorted(others)) or "no attention at all"
        raise NotImplementedError(
            f"{name} has layers without plain self-attention ({what}); vtprune cannot prune them yet. Beside "
            f"self-attention it knows layers of the kinds {', '.join(sorted(family.linear_types))}"
        )
    if linear and not compat.has_state_masks():
        raise NotImplementedError(
            f"{name} has linear layers, whose padding this version of transformers does not mask as vtprune expects; "
            "update transformers to 5.23 or later"
        )
    _check_arguments(decoder, family)
    crossed = [type(layer).__name__ for layer in decoder.layers if any("cross" in n for n, _ in layer.named_children())]
    if crossed or getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{name} reads images by cross-attention; its prompt holds no visual tokens that could be pruned"
        )


def _check_arguments(decoder: nn.Module, family: Family) -> None:
    """Raises NotImplementedError for layers that take tensors of which nobody said how they are pruned."""
    name = type(decoder).__name__
    for index, layer in enumerate(decoder.layers):
        taken = inspect.signature(layer.forward).parameters
        if "hidden_states" not in taken:
            raise NotImplementedError(f"layer {index} of {name} takes no hidden_states, but {', '.join(taken)}")
        for argument in taken.values():
            if "Tensor" in str(argument.annotation) and not knows(argument.name, family):
                raise NotImplementedError(
                    f"layer {index} of {name} takes a tensor {argument.name!r}, which may have an entry for each "
                    "token; vtprune does not know how to prune it. List it in `tokenwise` of "
                    f"{type(family).__name__} in vtprune/families/"
                )
    check_back_end(decoder, family)


def check_back_end(decoder: nn.Module, family: Family) -> None:
    """Raises NotImplementedError where the attention back end would misread what layers are given."""
    if decoder.config.model_type in family.reads_position_ids and "flash" in compat.attention_kind(decoder.config):
        raise NotImplementedError(
            f"{type(decoder).__name__} computes with position ids in its attention, and FlashAttention takes those of "
            "a pruned prompt, which have gaps, for several packed sequences. Load the model with "
            "attn_implementation='sdpa'"
        )


def check_planes(hidden: Tensor, family: Family, decoder: nn.Module) -> None:
    """Raises NotImplementedError for hidden states that are not (B, P, D), unless the family declares planes."""
    if hidden.dim() != (4 if family.active_plane else 3):
        raise NotImplementedError(
            f"{type(decoder).__name__} hands its layers hidden states of shape {tuple(hidden.shape)}; vtprune prunes "
            "(batch, tokens, width), and planes of it where the family names the active one: see active_plane in "
            "vtprune/families/base.py"
        )


def _is_other(decoder: nn.Module, layer: nn.Module, index: int, linear: bool) -> bool:
    """Whether a layer is neither plain self-attention nor linear."""
    kind = compat.layer_type(decoder, index) or ""
    return linear == hasattr(layer, "self_attn") or any(word in kind for word in _BOTH)


def _kind(decoder: nn.Module, index: int) -> str:
    return compat.layer_type(decoder, index) or type(decoder.layers[index]).__name__


def check_call(decoder: nn.Module, bound: Mapping) -> None:
    """Raises NotImplementedError for arguments of a forward that mean the unpruned sequence inside its layers."""
    packed = [name for name in _PACKED if bound.get(name) is not None]
    if packed:
        raise NotImplementedError(
            f"packed sequences ({', '.join(packed)}) cannot be pruned: their borders are counted in unpruned tokens. "
            "Pass a batch with an attention_mask"
        )
    routed = bound.get("output_router_logits")
    if routed or (routed is None and getattr(decoder.config, "output_router_logits", False)):
        raise NotImplementedError(
            "output_router_logits=True asks for one row of each layer's router per token, and layers behind a site see "
            "fewer tokens. Set it to False, or call vtprune.unwrap(model) first"
        )


def refuse_compiled_prefill(bound: Mapping) -> None:
    """A decode step may be compiled, a prompt may not: the graph would freeze one selection or leave it out."""
    ids, embeds = bound.get("input_ids"), bound.get("inputs_embeds")
    length = (ids if ids is not None else embeds).shape[1]
    if length > 1:
        raise NotImplementedError(
            f"vtprune cannot prune inside a compiled forward of {length} tokens: torch.compile would freeze one "
            "selection into the graph. Use generate(..., cache_implementation='static'), which compiles the decode "
            "steps only, or call the model uncompiled"
        )
