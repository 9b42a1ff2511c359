"""MiniCPM-V 4.6 and 4.7: Qwen3.5's decoder behind a SigLIP tower that merges patches after one of its layers.

A picture is a thumbnail and slices, each a run of placeholders and a segment of its own; so is every frame of a video,
as an encoder call does not say which frames make which video.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_source, register


@register
class MiniCPMV(Family):
    model_types = ("minicpmv4_6", "minicpmv4_7")

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        mode = arguments.get("downsample_mode") or self.base(model).config.downsample_mode
        block = 2 if mode == "4x" else 4
        return [grid_source(kind, 1, h // block, w // block) for h, w in _sizes(kind, arguments)]


def _sizes(kind: str, arguments: Mapping) -> list[tuple[int, int]]:
    """(height, width) in patches of each crop of an encoder call."""
    return arguments["target_sizes" if kind == "image" else "target_sizes_videos"].tolist()
