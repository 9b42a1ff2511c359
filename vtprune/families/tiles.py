"""Aya Vision, Cohere2 Vision, Ovis2 and GOT-OCR: an image is cut into square tiles, each a segment of its own."""

from torch import nn

from vtprune.families.base import Family, register


@register
class Tiles(Family):
    model_types = ("aya_vision", "cohere2_vision", "ovis2")

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # neighbours are joined inside the projector, or there is none


@register
class GotOcr(Tiles):
    model_types = ("got_ocr2", "pp_chart2table")

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        raise NotImplementedError(
            f"most layers of the vision tower of {type(model).__name__} attend within padded windows, which vtprune "
            "does not follow: choose a policy without signals of the vision tower"
        )
