"""Models that cannot be pruned yet are refused by ``wrap``, with the reason, before anything is hooked."""

import inspect

from torch import Tensor, nn

from vtprune.compat import attention_kind
from vtprune.families.base import Family
from vtprune.narrow import knows

_STATEFUL = ("linear_attention", "conv", "mamba", "recurrent", "hybrid")


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
    kinds = set(getattr(config, "layer_types", None) or ())
    stateful = sorted(kind for kind in kinds if any(word in kind for word in _STATEFUL))
    if stateful or any(not hasattr(layer, "self_attn") for layer in decoder.layers):
        what = ", ".join(stateful) or type(next(m for m in decoder.layers if not hasattr(m, "self_attn"))).__name__
        raise NotImplementedError(
            f"{name} has layers without plain self-attention ({what}); vtprune cannot prune them yet"
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
    if decoder.config.model_type in family.reads_position_ids and "flash" in attention_kind(decoder.config):
        raise NotImplementedError(
            f"{name} computes with position ids in its attention, and FlashAttention takes those of a pruned prompt, "
            "which have gaps, for several packed sequences. Load the model with attn_implementation='sdpa'"
        )


def check_planes(hidden: Tensor, family: Family, decoder: nn.Module) -> None:
    """Raises NotImplementedError for hidden states that are not (B, P, D), unless the family declares planes."""
    if hidden.dim() != (4 if family.active_plane else 3):
        raise NotImplementedError(
            f"{type(decoder).__name__} hands its layers hidden states of shape {tuple(hidden.shape)}; vtprune prunes "
            "(batch, tokens, width), and planes of it where the family names the active one: see active_plane in "
            "vtprune/families/base.py"
        )
