"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: a thumbnail and a large view whose rows end in newline tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtprune.compat import joined_frames
from vtprune.families.base import Family, Source, grid_coords, register, square_source, unknown_source


def newline_source(kind: str, newline: Tensor, thumbnail: int) -> Source:
    """A thumbnail of ``thumbnail`` tokens and a view of rows that end in newlines, from the (n,) newline flags."""
    side = round(thumbnail**0.5)
    ends = newline[thumbnail:].nonzero().flatten().tolist()
    height, rest = len(ends), len(newline) - thumbnail
    width = ends[0] if ends else 0
    regular = height and rest == height * (width + 1) and ends == [(width + 1) * (i + 1) - 1 for i in range(height)]
    if not regular or side * side != thumbnail:
        source = unknown_source(kind, len(newline))
        return Source(kind, source.coords, ~newline)
    wide = grid_coords(1, height, width + 1, view=1)
    wide[newline[thumbnail:]] = -1
    grids = ((1, side, side), (1, height, width))
    return Source(kind, torch.cat([grid_coords(1, side, side), wide]), ~newline, grids)


@register
class LlavaNext(Family):
    model_types = ("llava_next", "llava_next_video")

    def features(self, output: object) -> Sequence[Tensor] | Tensor | None:
        features = super().features(output)
        return None if features is None else joined_frames(features)

    def crops(self, model: nn.Module, arguments: Mapping) -> list[tuple[int, int]]:
        """The rows and columns of crops of each image, the thumbnail not among them."""
        from vtprune.compat import anyres_crops

        config = self.base(model).config
        return anyres_crops(arguments["image_sizes"], config.image_grid_pinpoints, config.vision_config.image_size)

    def tiles(self, model: nn.Module, arguments: Mapping) -> list[int]:
        """How many crops, the thumbnail included, each image has."""
        from vtprune.compat import anyres_tiles

        config = self.base(model).config
        return anyres_tiles(arguments["image_sizes"], config.image_grid_pinpoints, config.vision_config.image_size)

    def view_tokens(self, model: nn.Module) -> int:
        """Visual tokens of one crop, and of the thumbnail."""
        config = self.base(model).config.vision_config
        return (config.image_size // config.patch_size) ** 2

    def pack(self, model: nn.Module, arguments: Mapping, tiles: Sequence[Tensor], newline: Tensor) -> list[Tensor]:
        """The model's own arrangement of crops into prompt order, for any (crops, n, C) and a (C,) newline value."""
        strategy = (
            arguments.get("vision_feature_select_strategy") or self.base(model).config.vision_feature_select_strategy
        )
        packed, _ = self.base(model).pack_image_features(
            tiles, arguments["image_sizes"], vision_feature_select_strategy=strategy, image_newline=newline
        )
        return list(packed)

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        if kind == "video":
            return self.video_sources(model, arguments, features)
        n, counts = self.view_tokens(model), self.tiles(model, arguments)
        # the model arranges flags instead of features: 1 where it puts a newline
        flags = self.pack(model, arguments, [torch.zeros(count, n, 1) for count in counts], torch.ones(1))
        sources = []
        for count, crops, flag in zip(counts, self.crops(model, arguments), flags, strict=True):
            newline = flag[:, 0] > 0.5
            if count > 1:
                sources.append(replace(newline_source(kind, newline, n), crops=crops))
            else:
                sources.append(tail_source(kind, 1, newline))
        return sources

    def video_sources(self, model: nn.Module, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        return Family.sources(self, model, "video", arguments, features)

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        if kind == "video":
            return self.spread_video(model, arguments, scores, lengths)
        # the model arranges scores instead of features, with newlines of 0
        tiles = scores.transpose(1, 2).contiguous().split(self.tiles(model, arguments))
        packed = self.pack(model, arguments, tiles, scores.new_zeros(scores.shape[1]))
        return [score.T for score in packed]

    def spread_pixels(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        return self.spread(model, kind, arguments, scores, lengths)

    def spread_video(
        self, model: nn.Module, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        return Family.spread(self, model, "video", arguments, scores, lengths)


def tail_source(kind: str, frames: int, newline: Tensor) -> Source:
    """Square grids followed by newlines, from the (n,) newline flags."""
    plain = square_source(kind, frames, int((~newline).sum()))
    coords = torch.full((len(newline), 4), -1)
    coords[~newline] = plain.coords
    return Source(kind, coords, ~newline, plain.grids)


@register
class LlavaOnevision(LlavaNext):
    model_types = ("llava_onevision",)
    pools_after_projector = True

    def tiles(self, model: nn.Module, arguments: Mapping) -> list[int]:
        counts = super().tiles(model, arguments)
        images = arguments.get("batch_num_images")
        if images is None:
            return counts
        # only a lone image is cut into crops
        lone = [n == 1 for n in images.tolist() for _ in range(n)]
        return [count if one else 1 for count, one in zip(counts, lone, strict=True)]

    def pack(self, model: nn.Module, arguments: Mapping, tiles: Sequence[Tensor], newline: Tensor) -> list[Tensor]:
        ratio = arguments.get("vision_aspect_ratio") or self.base(model).config.vision_aspect_ratio
        packed, _ = self.base(model).pack_image_features(
            tiles, arguments["image_sizes"], image_newline=newline, vision_aspect_ratio=ratio
        )
        return list(packed)

    def projected(
        self, model: nn.Module, kind: str, arguments: Mapping, features: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        if kind == "image":
            return list(features.split(self.tiles(model, arguments)))
        return super().projected(model, kind, arguments, features, lengths)

    def video_sources(self, model: nn.Module, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        videos, frames = arguments["pixel_values_videos"].shape[:2]
        patches = self.base(model).apply_pooling(torch.zeros(1, self.view_tokens(model), 1)).shape[1]
        # one newline ends the video; the encoder adds it, or after it the model
        newline = torch.arange(frames * patches + 1) == frames * patches
        return [tail_source("video", frames, newline) for _ in range(videos)]

    def spread_video(
        self, model: nn.Module, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        pooled = self.base(model).apply_pooling(scores.transpose(1, 2)).transpose(1, 2)
        videos = pooled.split(arguments["pixel_values_videos"].shape[1])
        return [nn.functional.pad(frames.transpose(0, 1).flatten(1), (0, 1)) for frames in videos]
