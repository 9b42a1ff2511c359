"""PerceptionLM and FastVLM: vision towers of timm. The one's image is a thumbnail and square tiles, each a view.

PerceptionLM sends a video through the images' encoder.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_coords, register, square_source, unknown_source


class TimmTower(Family):
    """Families whose tower is a timm model."""

    def has_class_token(self, model: nn.Module, kind: str = "image") -> bool:
        return False

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        raise NotImplementedError(
            f"the vision tower of {type(model).__name__} is a timm model, into whose attention vtprune does not look: "
            "choose a policy without signals of the vision tower"
        )


@register
class FastVLM(TimmTower):
    model_types = ("fast_vlm",)


@register
class PerceptionLM(TimmTower):
    model_types = ("perception_lm",)

    def has_token_projector(self, model: nn.Module) -> bool:
        return self.base(model).config.projector_pooling_ratio == 1  # otherwise it pools

    def has_class_token(self, model: nn.Module, kind: str = "image") -> bool:
        return self.base(model).config.vision_use_cls_token

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        count, views = arguments["pixel_values"].shape[:2]
        n = len(features[0])
        if kind == "video":
            return [square_source(kind, views, views * n) for _ in range(count)]
        tile = square_source(kind, 1, n)
        if not tile.grids:
            return [unknown_source(kind, views * n) for _ in range(count)]
        coords = torch.cat([grid_coords(*tile.grids[0], view=view) for view in range(views)])
        return [Source(kind, coords, torch.ones(len(coords), dtype=torch.bool), tile.grids * views)] * count
