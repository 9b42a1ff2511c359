"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, also with experts: grids of any shape, in patches before the spatial merge."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_source, register


@register
class QwenVL(Family):
    model_types = ("qwen2_vl", "qwen2_5_vl")
    step_argument = "second_per_grid_ts"

    def frames_per_step(self, model: nn.Module) -> int:
        return self.base(model).config.vision_config.temporal_patch_size

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        merge = self.base(model).config.vision_config.spatial_merge_size
        grids = arguments[f"{kind}_grid_thw"].tolist()
        return [grid_source(kind, t, h // merge, w // merge) for t, h, w in grids]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        config = self.base(model).config.vision_config
        window = getattr(config, "window_size", None)
        parts = QwenVL.spread_pixels(self, model, kind, arguments, scores, lengths)
        if window is None:
            return parts
        grids, side = self._grids(model, kind, arguments), window // config.spatial_merge_size // config.patch_size
        orders = [window_order(t, h, w, side).to(scores.device) for t, h, w in grids]
        return [part[:, order.argsort()] for part, order in zip(parts, orders)]

    def spread_pixels(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        merge = self.base(model).config.vision_config.spatial_merge_size
        # the tower keeps the patches of one token together
        tokens = scores[0].unflatten(1, (-1, merge**2)).mean(2)
        return list(tokens.split([t * h * w for t, h, w in self._grids(model, kind, arguments)], 1))

    def _grids(self, model: nn.Module, kind: str, arguments: Mapping) -> list[tuple[int, int, int]]:
        """In tokens."""
        merge = self.base(model).config.vision_config.spatial_merge_size
        return [(t, h // merge, w // merge) for t, h, w in arguments[f"{kind}_grid_thw"].tolist()]


def window_order(t: int, h: int, w: int, side: int) -> Tensor:
    """(t * h * w,) int64: raster places of a grid as Qwen2.5-VL's tower orders them: ``side`` x ``side`` windows."""
    frame, row, column = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    window = (frame * (-(-h // side)) + row // side) * (-(-w // side)) + column // side
    return window.flatten().argsort(stable=True)


@register
class Qwen3VL(QwenVL):
    model_types = ("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni")
    between_layers = ("_deepstack_process",)
