"""LFM2-VL and LFM3-VL: decoders of short convolutions with attention among them."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register
from vtprune.families.qwen_vl import QwenVL


@register
class Lfm2VL(Family):
    """An image is cut into tiles, each a run of placeholders and a segment of its own; the last is the thumbnail."""

    model_types = ("lfm2_vl",)

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        block = self.base(model).config.downsample_factor
        return [grid_source(kind, 1, h // block, w // block) for h, w in arguments["spatial_shapes"].tolist()]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        block = self.base(model).config.downsample_factor
        # tiles of fewer patches are padded at the end
        shapes = arguments["spatial_shapes"].tolist()
        return [grid_means(tile[:, : h * w], h, w, block) for tile, (h, w) in zip(scores, shapes, strict=True)]


@register
class Lfm3VL(QwenVL):
    """Some layers of the tower are convolutions; its signals count and come from those that attend."""

    model_types = ("lfm3_vl",)

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        return [layer.self_attn for layer in self.towers(model)[kind].layers if hasattr(layer, "self_attn")]
