"""Models that cannot be pruned yet are refused by ``wrap``, with the reason, before anything is hooked."""

from torch import nn

from vtprune.families.base import Family

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
    crossed = [type(layer).__name__ for layer in decoder.layers if any("cross" in n for n, _ in layer.named_children())]
    if crossed or getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{name} reads images by cross-attention; its prompt holds no visual tokens that could be pruned"
        )
