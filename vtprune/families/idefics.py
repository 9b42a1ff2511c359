"""Idefics3, SmolVLM and Granite Docling: an image is cut into tiles, each a run of placeholders and its own segment."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, Source, register, square_source, unknown_source


@register
class Idefics(Family):
    model_types = ("idefics3", "smolvlm")

    def tile_tokens(self, model: nn.Module, arguments: Mapping) -> int:
        """Visual tokens of one tile."""
        config = self.base(model).config
        return (config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor) ** 2

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        n = self.tile_tokens(model, arguments)
        total = sum(len(feature) for feature in features)  # the tiles of a sample come in one piece
        if total % n:
            return [unknown_source(kind, len(feature)) for feature in features]
        return [square_source(kind, 1, n) for _ in range(total // n)]


@register
class GraniteDocling(Idefics):
    model_types = ("granite_docling",)
    between_layers = ("_deepstack_process",)

    def tile_tokens(self, model: nn.Module, arguments: Mapping) -> int:
        fine = arguments.get("tile_fine_mask") is not None  # four times as many for dense pages
        return self.base(model).image_seq_len * (4 if fine else 1)
