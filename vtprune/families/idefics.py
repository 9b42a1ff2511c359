"""Idefics3 and SmolVLM: an image is cut into tiles, each a run of placeholders and a segment of its own."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, register, square_source, unknown_source


@register
class Idefics(Family):
    model_types = ("idefics3", "smolvlm")

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        config = self.base(model).config
        n = (config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor) ** 2
        total = sum(len(feature) for feature in features)  # the tiles of a sample come in one piece
        if total % n:
            return [unknown_source(kind, len(feature)) for feature in features]
        return [square_source(kind, 1, n) for _ in range(total // n)]
