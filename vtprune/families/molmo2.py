"""Molmo2: an image is a thumbnail and a view of overlapping crops, a video plain frames; one placeholder for both."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_coords, grid_source, register


@register
class Molmo2(Family):
    model_types = ("molmo2",)
    videos_at_images = True

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # a token is pooled from patches by attention

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        if kind == "video":
            return [grid_source(kind, *grid) for grid in arguments["video_grids"].tolist()]
        found = []
        for height, width, high, wide in arguments["image_grids"].tolist():
            coords = torch.cat([grid_coords(1, height, width), grid_coords(1, high, wide, view=1)])
            grids = ((1, height, width), (1, high, wide))
            found.append(Source(kind, coords, torch.ones(len(coords), dtype=torch.bool), grids))
        return found

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        pooled = arguments[f"{kind}_token_pooling"].to(scores.device)  # patches of each token, -1 for none
        flat, real = scores.transpose(0, 1).flatten(1), pooled >= 0
        tokens = (flat[:, pooled.clamp(min=0)] * real).sum(-1) / real.sum(-1).clamp(min=1)
        return list(tokens[:, real.any(-1)].split(list(lengths), 1))
