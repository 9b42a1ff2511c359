"""Gemma 4 and Gemma 4 Unified: grids of any shape told by the places of the patches; inputs of their own per layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, grid_means, grid_source, register


@register
class Gemma4(Family):
    model_types = ("gemma4",)
    tokenwise = {"per_layer_input": 1}
    cuts_rows = ("_maybe_slice_kv_shared_inputs",)

    def block(self, model: nn.Module) -> int:
        """The edge of the square of patches that makes a token."""
        return self.base(model).config.vision_config.pooling_kernel_size

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        tower = self.base(model).vision_tower
        return {} if tower is None else {"image": tower, "video": tower}

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).embed_vision

    def grids(self, model: nn.Module, kind: str, arguments: Mapping) -> list[tuple[int, int, int]]:
        """(T, H, W) of each image or video of an encoder call, in tokens."""
        # (frames, patches, 2) column and row of each patch, -1 for padding; 5.9 stacks the frames of every video
        places = arguments[f"{kind}_position_ids"].cpu()
        told = arguments.get("num_frames_per_video")
        frames = [1] * len(places) if told is None else told.tolist()
        if places.dim() == 4:
            frames, places = [places.shape[1]] * len(places), places.flatten(0, 1)
        sizes = (places.amax(1) + 1) // self.block(model)
        # the frames of a video are all of one size
        return [(len(some), int(some[0, 1]), int(some[0, 0])) for some in sizes.split(frames)]

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        return [grid_source(kind, t, h, w) for t, h, w in self.grids(model, kind, arguments)]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        block, out = self.block(model), []
        grids = self.grids(model, kind, arguments)
        for (_, h, w), frames in zip(grids, scores.split([t for t, _, _ in grids]), strict=True):
            # patches are in raster order, padding behind them
            high, wide = h * block, w * block
            out.append(torch.cat([grid_means(frame[:, : high * wide], high, wide, block) for frame in frames], 1))
        return out


@register
class Gemma4Unified(Gemma4):
    """Pixels go into the decoder without a vision tower; a patch is a token."""

    model_types = ("gemma4_unified",)

    def block(self, model: nn.Module) -> int:
        return 1

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        return {}
