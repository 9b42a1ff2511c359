"""VideoLLaMA 3: images of any shape with a downsampling of their own, videos without the tokens that repeat.

Its processor leaves out tokens of a video that hardly differ from the frame before; what is left has its place in the
grid of the whole video.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_source, register


@register
class VideoLlama3(Family):
    model_types = ("video_llama_3",)
    mask_argument = "video_compression_mask"

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).projector

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        grids, merges = arguments[f"{kind}_grid_thw"].tolist(), arguments[f"{kind}_merge_sizes"].tolist()
        return [grid_source(kind, t, h // m, w // m) for (t, h, w), m in zip(grids, merges, strict=True)]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        # the model itself downsamples scores instead of features
        tower, grids = self.base(model).vision_model, arguments[f"{kind}_grid_thw"]
        tokens = tower.pixel_unshuffle(scores[0].T.contiguous(), grids, arguments[f"{kind}_merge_sizes"])
        return list(tokens.T.split(list(lengths), 1))
