"""Gemma 3n: a convolutional tower gives one square grid for each image; a token is several vectors (AltUp)."""

from collections.abc import Mapping

from torch import Tensor, nn

from vtprune.families.base import Family, register


@register
class Gemma3n(Family):
    model_types = ("gemma3n",)
    tokenwise = {"per_layer_input": 1}
    active_plane = "altup_active_idx"

    def attention_input(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        predicted = layer.altup.predict(hidden)
        return layer.input_layernorm(predicted[layer.config.altup_active_idx])

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        # what the tower convolves cannot be watched as attention
        return {}

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).embed_vision
