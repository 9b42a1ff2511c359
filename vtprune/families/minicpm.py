"""MiniCPM-V 4.6 and MiniCPM-V 4.7: Qwen3.5's decoder behind a SigLIP tower that merges patches after one of its layers.

A picture is a thumbnail and slices, each a run of placeholders and a segment of its own; so is every frame of a video,
as an encoder call does not say which frames make which video.
"""

from collections.abc import Mapping, Sequence
from math import isqrt

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register


@register
class MiniCPMV(Family):
    model_types = ("minicpmv4_6", "minicpmv4_7")

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        crops = zip(_sizes(kind, arguments), features, strict=True)
        blocks = [(h, w, isqrt(h * w // len(feature))) for (h, w), feature in crops]
        return [grid_source(kind, 1, h // block, w // block) for h, w, block in blocks]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        sizes = _sizes(kind, arguments)
        # behind the merging layer there are fewer patches, as many times for every crop
        merged = isqrt(sum(h * w for h, w in sizes) // scores.shape[-1])
        sizes = [(h // merged, w // merged) for h, w in sizes]
        parts = scores[0].split([h * w for h, w in sizes], 1)
        return [
            grid_means(part, h, w, isqrt(h * w // n)) for part, (h, w), n in zip(parts, sizes, lengths, strict=True)
        ]


def _sizes(kind: str, arguments: Mapping) -> list[tuple[int, int]]:
    """(height, width) in patches of each crop of an encoder call."""
    return arguments["target_sizes" if kind == "image" else "target_sizes_videos"].tolist()
