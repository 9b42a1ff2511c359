"""Video-LLaVA: two towers; every frame of a video keeps its class token."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, register, square_source


@register
class VideoLlava(Family):
    model_types = ("video_llava",)

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        base = self.base(model)
        return {"image": base.image_tower, "video": base.video_tower}

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        if kind == "image":
            return super().sources(model, kind, arguments, features)
        videos, frames = arguments["pixel_values_videos"].shape[:2]
        n = features[0].shape[0]
        patch = torch.ones(n, dtype=torch.bool)
        patch[0] = False  # the class token stands first in each frame
        plain = square_source(kind, frames, frames * (n - 1))
        coords = torch.full((frames, n, 4), -1)
        coords[:, 1:] = plain.coords.view(frames, n - 1, 4)
        return [Source(kind, coords.view(-1, 4), patch.repeat(frames), plain.grids) for _ in range(videos)]
