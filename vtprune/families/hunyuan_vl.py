"""HunYuan-VL: grids of any shape whose rows end in newline tokens, between two more that mark begin and end."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_coords, grid_means, register


@register
class HunYuanVL(Family):
    model_types = ("hunyuan_vl",)

    def grids(self, model: nn.Module, arguments: Mapping) -> list[tuple[int, int]]:
        """Rows and columns of tokens of each image, newlines not among them."""
        merge = self.base(model).config.vision_config.spatial_merge_size
        return [(h // merge, w // merge) for _, h, w in arguments["image_grid_thw"].tolist()]

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        found = []
        for height, width in self.grids(model, arguments):
            rows = grid_coords(1, height, width + 1)
            rows[rows[:, 3] == width] = -1
            mark = torch.full((1, 4), -1)
            coords = torch.cat([mark, rows, mark])
            found.append(Source(kind, coords, coords[:, 0] >= 0, ((1, height, width),)))
        return found

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        merge, spread = self.base(model).config.vision_config.spatial_merge_size, []
        grids = self.grids(model, arguments)
        parts = scores[0].split([h * w * merge**2 for h, w in grids], 1)
        for part, (height, width) in zip(parts, grids, strict=True):
            rows = grid_means(part, height * merge, width * merge, merge).view(-1, height, width)
            spread.append(nn.functional.pad(nn.functional.pad(rows, (0, 1)).flatten(1), (1, 1)))
        return spread
