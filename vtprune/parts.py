"""The parts of a decoder and of its layers, under the names that transformers gives them."""

from torch import nn


def mlp_of(layer: nn.Module) -> nn.Module:
    """The MLP or mixture of experts of a decoder layer. Raises NotImplementedError when it has another name."""
    return _part(layer, "the MLP", ("mlp", "feed_forward", "block_sparse_moe"))


def mixer_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder layer, or what a linear one has in its place. Raises NotImplementedError likewise."""
    return _part(layer, "the attention", ("self_attn", "linear_attn", "conv"))


def norm_before(layer: nn.Module) -> nn.Module:
    """The norm before the attention of a decoder layer. Raises NotImplementedError likewise."""
    return _part(layer, "the norm before the attention", ("input_layernorm", "operator_norm"))


def last_norm(decoder: nn.Module) -> nn.Module | None:
    """The norm after the last layer of a decoder, None when it has another name."""
    return getattr(decoder, "norm", None) or getattr(decoder, "embedding_norm", None)


def _part(module: nn.Module, what: str, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise NotImplementedError(
        f"cannot find {what} in {type(module).__name__} by the name {' or '.join(names)}; choose a policy that reads "
        "no signal of it"
    )
