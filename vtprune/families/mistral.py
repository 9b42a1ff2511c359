"""Mistral3: grids of any shape from the image sizes; row breaks are text tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register


@register
class Mistral3(Family):
    model_types = ("mistral3",)

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # it joins neighbours

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        config = self.base(model).config
        side = config.vision_config.patch_size * config.spatial_merge_size
        sizes = arguments["image_sizes"]
        return [grid_source(kind, 1, int(h) // side, int(w) // side) for h, w in sizes]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        config = self.base(model).config
        patch, merge = config.vision_config.patch_size, config.spatial_merge_size
        sizes = [(int(h) // patch, int(w) // patch) for h, w in arguments["image_sizes"]]
        # the images lie one after the other in one sequence
        parts = scores[0].split([h * w for h, w in sizes], 1)
        return [grid_means(part, h, w, merge) for part, (h, w) in zip(parts, sizes, strict=True)]

    def spread_pixels(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        # pixels of images that are smaller than the largest are padded on the right and below
        patch = self.base(model).config.vision_config.patch_size
        padded = scores.unflatten(2, (-1, arguments["pixel_values"].shape[-1] // patch))
        sizes = [(int(h) // patch, int(w) // patch) for h, w in arguments["image_sizes"]]
        parts = [image[:, :h, :w].flatten(1) for image, (h, w) in zip(padded, sizes, strict=True)]
        return self.spread(model, kind, arguments, torch.cat(parts, 1)[None], lengths)
