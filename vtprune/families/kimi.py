"""Kimi K2.5: images of any shape; the frames of a chunk of video attend to each other and are averaged to one.

A video comes as chunks of frames, each after its time stamp and each a grid of its own: the model is not told which
chunks belong together, so every chunk is a source of one step. transformers 5.23 itself fails on chunks of more than
one frame, because it counts the tokens of every frame where one is left.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register


@register
class Kimi(Family):
    model_types = ("kimi_k25",)

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).mm_projector

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        high, wide = self.base(model).config.vision_config.merge_kernel_size
        return [grid_source(kind, 1, h // high, w // wide) for _, h, w in arguments[f"{kind}_grid_thw"].tolist()]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        block, grids = self.base(model).config.vision_config.merge_kernel_size, arguments[f"{kind}_grid_thw"].tolist()
        parts = scores[0].split([t * h * w for t, h, w in grids], 1)
        frames = [part.unflatten(1, (t, -1)).mean(1) for part, (t, _, _) in zip(parts, grids, strict=True)]
        return [grid_means(part, h, w, tuple(block)) for part, (_, h, w) in zip(frames, grids, strict=True)]
