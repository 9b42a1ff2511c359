"""Granite 4 Vision: LLaVA-NeXT's views, added to the visual tokens before several decoder layers, the last first."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from torch import Tensor, nn

from vtprune.families.base import register
from vtprune.families.llava_next import LlavaNext


@register
class Granite4Vision(LlavaNext):
    model_types = ("granite4_vision",)
    adds_in_loop = ("vision_mask", "deepstack_features")

    def has_token_projector(self, model: nn.Module) -> bool:
        return False

    def features(self, output: object) -> Sequence[Tensor] | None:
        found = getattr(output, "deepstack_features", None)
        return None if not found else found[0][1]

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        raise NotImplementedError(
            f"in {type(model).__name__} every visual token is a query that has read a window of patches of several "
            "tower layers, so no patch is a token's own: choose a policy without signals of the vision tower"
        )

    def view_tokens(self, model: nn.Module) -> int:
        config = self.base(model).config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(side * Fraction(config.downsample_rate)) ** 2

    def pack(self, model: nn.Module, arguments: Mapping, tiles: Sequence[Tensor], newline: Tensor) -> list[Tensor]:
        config = self.base(model).config
        strategy = arguments.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
        return self.base(model).pack_image_features(tiles, arguments["image_sizes"], strategy, newline)
