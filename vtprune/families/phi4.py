"""Phi-4 multimodal: its decoder encodes pictures itself, as crops whose rows end in newline tokens and a thumbnail."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_coords, register


@register
class Phi4Multimodal(Family):
    model_types = ("phi4_multimodal",)
    text_is_base = True

    def merger(self, model: nn.Module) -> nn.Module:
        return self.base(model).embed_tokens_extend

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        return {"image": self.merger(model).image_embed.img_processor}

    def projector(self, model: nn.Module) -> nn.Module:
        raise NotImplementedError(f"{type(model).__name__} projects by two layers that are no module of their own")

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        return {"image": model.config.vision_config.image_token_id}

    def grids(self, model: nn.Module, arguments: Mapping) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Of each image the rows and columns of its crops, and those of its high-resolution view in tokens."""
        size, side = model.config.vision_config.crop_size, self.side(model)
        crops = [(int(h) // size, int(w) // size) for h, w in arguments["image_sizes"].view(-1, 2)]
        masks = arguments.get("image_attention_mask")
        if masks is None:
            return [(count, (count[0] * side, count[1] * side)) for count in crops]
        grids = []
        for (rows, columns), mask in zip(crops, masks.cpu(), strict=True):
            # (crops, side, side) which tokens are not padding; the first mask is the thumbnail's
            real = mask[1 : 1 + rows * columns, ::2, ::2].view(rows, columns, side, side).bool()
            grids.append(((rows, columns), (int(real[:, 0, :, 0].sum()), int(real[0, :, 0].sum()))))
        return grids

    def side(self, model: nn.Module) -> int:
        """The edge of a crop in tokens, each made of four patches."""
        config = model.config.vision_config
        return -(-config.image_size // config.patch_size // 2)

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        if arguments.get("image_pixel_values") is None:
            return []
        side, out = self.side(model), []
        for crops, (high, wide) in self.grids(model, arguments):
            views = [ended_rows(1, high, wide), torch.full((1, 4), -1), ended_rows(0, side, side)]
            coords = torch.cat(views)
            grids = ((1, side, side), (1, high, wide))
            out.append(Source("image", coords, coords[:, 0] >= 0, grids, crops=crops))
        return out

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        image_embed = self.merger(model).image_embed
        square = scores.unflatten(2, (round(scores.shape[2] ** 0.5), -1))
        if hasattr(image_embed, "img_processor_padding"):
            square = image_embed.img_processor_padding(square)
        tokens = image_embed.image_token_compression(square)
        grids, out = self.grids(model, arguments), []
        for ((rows, columns), (high, wide)), tiles in zip(grids, tokens.chunk(len(grids)), strict=True):
            crops = tiles[1 : 1 + rows * columns].unflatten(0, (rows, columns))
            # (rows, columns, C, side, side) -> (C, rows * side, columns * side)
            canvas = crops.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[:, :high, :wide]
            views = [nn.functional.pad(view, (0, 1)).flatten(1) for view in (canvas, tiles[0])]
            out.append(torch.cat([views[0], scores.new_zeros(scores.shape[1], 1), views[1]], 1))
        return out


def ended_rows(view: int, high: int, wide: int) -> Tensor:
    """(high * (wide + 1), 4) coords of a grid in raster order, every row followed by a newline of -1."""
    coords = grid_coords(1, high, wide, view).view(high, wide, 4)
    return nn.functional.pad(coords, (0, 0, 0, 1), value=-1).view(-1, 4)
