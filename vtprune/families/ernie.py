"""Ernie 4.5 VL: mRoPE, experts of their own for visual tokens; two frames of a video make one step."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Source, grid_source, register
from vtprune.families.qwen_vl import QwenVL


@register
class Ernie(QwenVL):
    model_types = ("ernie4_5_vl_moe",)
    tokenwise = {"moe_mm_token_type_ids": 1}
    step_argument = ""

    def frames_per_step(self, model: nn.Module) -> int:
        return self.base(model).config.vision_config.temporal_merge_size

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).resampler_model

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        config = self.base(model).config.vision_config
        merge, frames = config.spatial_merge_size, config.temporal_merge_size if kind == "video" else 1
        grids = arguments[f"{kind}_grid_thw"].tolist()
        return [grid_source(kind, t // frames, h // merge, w // merge) for t, h, w in grids]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        frames = super().spread(model, kind, arguments, scores, lengths)
        if kind == "image":
            return frames
        steps = [int(t) // self.frames_per_step(model) for t in arguments["video_grid_thw"][:, 0]]
        # frames follow each other, those of a step too
        return [f.unflatten(1, (step, -1, n // step)).mean(2).flatten(1) for f, step, n in zip(frames, steps, lengths)]
