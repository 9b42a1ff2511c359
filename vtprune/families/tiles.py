"""Cohere2 Vision and Ovis2: an image is cut into square tiles of equal size, each a segment of its own."""

from torch import nn

from vtprune.families.base import Family, register


@register
class Tiles(Family):
    model_types = ("cohere2_vision", "ovis2")

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # neighbours are joined inside the projector, or there is none
