"""A site inside a decoder layer, between its attention and its MLP, with hooks alone.

The residual after attention is the layer's input plus the attention's output; there the policy is asked. The norm
before the MLP gets the shortened rows, so the MLP is paid for survivors only. Its output is scattered back, so that the
layer's own addition has matching shapes, and the layer's result is replaced by the shortened sum: the same addition,
exact in every dtype. The keys and values of this layer keep the length that its attention saw.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from vtprune.forward import CURRENT, Forward
from vtprune.parts import mixer_of
from vtprune.tokens import inside


class InsideSite:
    """The hooks of one inside site."""

    def __init__(self, pruner, index: int):
        self.pruner, self.index, self.layer = pruner, index, pruner.layers[index]

    def attach(self) -> list:
        """Registers the hooks and returns their handles."""
        layer = self.layer
        return [
            mixer_of(layer).register_forward_hook(self._after_attention, with_kwargs=True),
            layer.post_attention_layernorm.register_forward_pre_hook(self._before_norm),
            layer.mlp.register_forward_hook(self._after_mlp),
            layer.register_forward_hook(self._after_layer),
        ]

    def _forward(self) -> Forward | None:
        if torch.compiler.is_compiling():
            return None
        forward = CURRENT.get()
        return forward if forward is not None and forward.owner is self.pruner and forward.layout is not None else None

    def _after_attention(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        forward = self._forward()
        if forward is None:
            return
        state = forward.inside
        if forward.done:
            state.clear()
            return
        middle = state.pop("residual") + (output[0] if isinstance(output, tuple) else output)
        signals = functools.partial(self.pruner.sight.signals, forward, inside(self.index), self.index, middle, kwargs)
        n_steps = len(forward.steps)
        shortened = forward.prune(inside(self.index), middle, signals, self.pruner.arguments.shift(kwargs, self.index))
        self.pruner.sight.served(forward, inside(self.index))
        if len(forward.steps) > n_steps:
            state.update(middle=shortened, length=middle.shape[1])

    def _before_norm(self, module: nn.Module, args: tuple):
        forward = self._forward()
        return None if forward is None or "middle" not in forward.inside else (forward.inside["middle"], *args[1:])

    def _after_mlp(self, module: nn.Module, args: tuple, output: Tensor):
        forward = self._forward()
        if forward is None or "middle" not in forward.inside:
            return None
        forward.inside["mlp"] = output
        return output.new_zeros(output.shape[0], forward.inside["length"], output.shape[-1])

    def _after_layer(self, module: nn.Module, args: tuple, output):
        forward = self._forward()
        if forward is None or "middle" not in forward.inside:
            return None
        state = forward.inside
        summed = state.pop("middle") + state.pop("mlp")
        state.clear()
        return (summed, *output[1:]) if isinstance(output, tuple) else summed
