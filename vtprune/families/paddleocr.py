"""PaddleOCR-VL: mRoPE, images of any shape; the tower takes patches row by row, the projector joins blocks of them."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register


@register
class PaddleOCR(Family):
    model_types = ("paddleocr_vl",)

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).projector

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        merge = self.base(model).config.vision_config.spatial_merge_size
        return [grid_source(kind, t, h // merge, w // merge) for t, h, w in arguments[f"{kind}_grid_thw"].tolist()]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        merge, grids = self.base(model).config.vision_config.spatial_merge_size, arguments[f"{kind}_grid_thw"].tolist()
        parts = scores[0].split([t * h * w for t, h, w in grids], 1)
        return [grid_means(part, h, w, merge) for part, (_, h, w) in zip(parts, grids, strict=True)]
