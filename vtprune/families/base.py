"""What the engine must know about a family of models: where its parts are and what its encoder calls mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vtprune.compat import kv_sources, picture_base, text_part
from vtprune.parts import norm_before

FAMILIES: dict[str, Family] = {}
"""Families by ``config.model_type``; the dict is the listing."""

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXEL_SCALES = {
    ("clip_vision_model", "pixtral", "qwen2_vl_vision", "qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder"): _CLIP,
    ("glm4v_vision",): _CLIP,
    ("siglip_vision_model", "idefics3_vision", "smolvlm_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision"): _HALF,
    ("internvl_vision",): _IMAGENET,
}
"""The mean and standard deviation of pixels / 255 that published processors take, by ``model_type`` of the tower."""


@dataclass(frozen=True)
class Source:
    """One image or video as its encoder delivered it: n visual tokens in prompt order.

    kind:    "image" or "video".
    coords:  (n, 4) int64 view, frame, row, column; -1 where unknown or not a place in a grid.
    patch:   (n,) bool; False for newline, separator and class tokens, which policies do not see by default.
    grids:   (T, H, W) of each view, () if unknown.
    signals: what was seen in the vision tower, each (..., n).
    seconds: (T,) float64 when each step of the first view is shown, nan where unknown; None where nobody said.
    clip:    of an image that is a frame of a video: which video of the call; None where nobody said.
    crops:   (rows, columns) of the crops that the tower saw the last view as, padding included; None if not known.
    """

    kind: str
    coords: Tensor
    patch: Tensor
    grids: tuple[tuple[int, int, int], ...] = ()
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: Tensor | None = None
    clip: int | None = None
    crops: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.patch)

    @property
    def token_seconds(self) -> Tensor:
        """(n,) float64: when each token is shown, nan where unknown."""
        frame = self.coords[:, 1]
        if self.seconds is None:
            return torch.full((len(self),), math.nan, dtype=torch.float64)
        return self.seconds[frame.clamp(min=0)].masked_fill(frame < 0, math.nan)

    def only(self, mask: Tensor) -> Source:
        """The tokens that reach the prompt, (n,) bool, in their old places."""
        signals = {
            name: signal[..., mask.to(signal.device)] if isinstance(signal, Tensor) else signal.only(mask)
            for name, signal in self.signals.items()
        }
        return replace(self, coords=self.coords[mask], patch=self.patch[mask], signals=signals)


def grid_coords(t: int, h: int, w: int, view: int = 0) -> Tensor:
    """(t * h * w, 4) int64: view, frame, row, column of a grid in raster order."""
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3)
    return torch.cat([torch.full((len(places), 1), view), places], 1)


def grid_source(kind: str, t: int, h: int, w: int) -> Source:
    """A plain t x h x w grid without newlines."""
    return Source(kind, grid_coords(t, h, w), torch.ones(t * h * w, dtype=torch.bool), ((t, h, w),))


def unknown_source(kind: str, n: int) -> Source:
    """n tokens of which only the order is known."""
    return Source(kind, torch.full((n, 4), -1), torch.ones(n, dtype=torch.bool))


def square_source(kind: str, frames: int, n: int) -> Source:
    """``frames`` square grids that hold n tokens together; unknown places if they cannot."""
    side = math.isqrt(n // frames) if frames else 0
    return grid_source(kind, frames, side, side) if side and frames * side * side == n else unknown_source(kind, n)


def grid_means(scores: Tensor, height: int, width: int, block: int | tuple[int, int]) -> Tensor:
    """(C, frames * height * width) patches -> (C, n): means over blocks of patches of a frame, in raster order."""
    return nn.functional.avg_pool2d(scores.reshape(len(scores), -1, height, width), block).flatten(1)


def spread_tile(scores: Tensor, n: int) -> Tensor:
    """(C, patches) of one tile -> (C, n) of its visual tokens: the same, with a class token first, or square blocks."""
    patches = scores.shape[1]
    if n in (patches, patches + 1):
        return nn.functional.pad(scores, (n - patches, 0))
    side, out = math.isqrt(patches), math.isqrt(n)
    if side * side != patches or out * out != n or not 0 < out < side or side // (side // out) != out:
        raise NotImplementedError(
            f"no rule says which of {patches} patches of the vision tower make which of {n} visual tokens; the family "
            "must define spread, see vtprune/families/base.py"
        )
    return grid_means(scores, side, side, side // out)


class Family:
    """Answers with defaults that fit most models; a family overrides what differs.

    model_types:        the ``config.model_type`` values it serves.
    between_layers:     methods of the decoder that change hidden states between layers by a full-length visual mask
                        (DeepStack); called as (hidden, visual mask (B, L), embeddings (visual tokens, D)).
    adds_in_loop:       arguments of the decoder by which it does the same itself, in the middle of its loop: a visual
                        mask (B, L, 1), and a mapping from layers to embeddings that are added before each.
    cuts_rows:          methods of the decoder that cut hidden states and all that goes with them to the last rows,
                        where no later layer needs the others; the first they take and return are hidden states.
    tokenwise:          layer arguments with one entry per token, gathered with the hidden states: name -> dimension.
    reads_position_ids: model types of decoders whose attention computes with ``position_ids`` beyond the rotary tables.
    active_plane:       where hidden states are several planes (N, B, L, D): the field of the decoder's config that says
                        which of them attention sees, and so policies do; "" where there is one.
    text_is_base:       whether the decoder itself takes pixels and puts features into the prompt, see ``merger``.
    linear_types:       kinds in the decoder's ``config.layer_types`` whose layers keep a state, not keys and values.
    pools_after_projector: whether videos leave ``projector`` with more tokens than reach the prompt.
    step_argument:      argument of the base model that says how many seconds lie between the steps of each video.
    mask_argument:      argument of the base model that says which tokens of all its videos reach the prompt, (n,) bool.
    refused:            arguments of the decoder that cannot be served while it is pruned -> why, and what to do.
    videos_at_images:   whether videos stand at the placeholders of images, and a forward gets images or videos.
    """

    model_types: tuple[str, ...] = ()
    between_layers: tuple[str, ...] = ()
    adds_in_loop: tuple[str, str] | None = None
    cuts_rows: tuple[str, ...] = ()
    tokenwise: Mapping[str, int] = {}
    reads_position_ids: tuple[str, ...] = ("ministral3", "mistral4")
    active_plane: str = ""
    text_is_base: bool = False
    linear_types: frozenset[str] = frozenset({"linear_attention", "conv"})
    pools_after_projector: bool = False
    step_argument: str = ""
    mask_argument: str = ""
    refused: Mapping[str, str] = {}
    videos_at_images: bool = False

    def frames_per_step(self, model: nn.Module) -> int:
        """How many frames of a video make one step of its grid."""
        return 1

    def base(self, model: nn.Module) -> nn.Module:
        """The model that owns ``get_image_features`` and merges the features into the prompt."""
        return picture_base(model)

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text model whose ``layers`` are pruned."""
        base = self.base(model)
        return base if self.text_is_base else text_part(base)

    def merger(self, model: nn.Module) -> nn.Module:
        """Of a base that is the decoder too: the part that encodes pictures and puts them into the prompt.

        Its arguments, and those of the base, are what ``sources`` gets.
        """
        raise NotImplementedError(f"{type(self).__name__} says text_is_base and must define merger")

    def kv_source(self, decoder: nn.Module) -> Mapping[int, int]:
        """Layers that have no keys and values of their own -> the earlier layer whose they attend to."""
        return kv_sources(decoder.config)

    def attention_input(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """(B, P, D) what a decoder layer's attention gets, of the layer's own input ``hidden``."""
        return norm_before(layer)(hidden)

    def linear_layers(self, model: nn.Module) -> frozenset[int]:
        """The decoder layers that keep a state instead of keys and values: linear attention, short convolutions."""
        kinds = getattr(self.decoder(model).config, "layer_types", None) or ()
        return frozenset(index for index, kind in enumerate(kinds) if kind in self.linear_types)

    def check_prompt(self, decoder: nn.Module, tokens: int) -> None:
        """Raises NotImplementedError for prompts of so many tokens, cached ones included, that pruning is not exact."""

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """The vision tower that encodes each modality ("image", "video")."""
        base = self.base(model)
        for name in ("vision_tower", "visual", "vision_model"):
            if hasattr(base, name):
                return {"image": getattr(base, name), "video": getattr(base, name)}
        return {}

    def projector(self, model: nn.Module) -> nn.Module:
        """Maps features of the vision tower to the decoder's width."""
        return self.base(model).multi_modal_projector

    def has_token_projector(self, model: nn.Module) -> bool:
        """Whether ``projector`` makes each visual token of one row that it is given."""
        return hasattr(self.base(model), "multi_modal_projector")

    def projected(
        self, model: nn.Module, kind: str, arguments: Mapping, features: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        """(tiles, patches, D) of all sources, as ``projector`` gave them, -> those of each source."""
        return list(features.chunk(len(lengths)))

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        """The placeholder id of each modality that the model knows."""
        ids = {kind: getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
        return {kind: token for kind, token in ids.items() if isinstance(token, int)}

    def features(self, output: object) -> Sequence[Tensor] | Tensor | None:
        """What an encoder call delivered for each image or video, out of its output; None if it was no such call."""
        return getattr(output, "pooler_output", None)

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        """What an encoder call delivered.

        kind:      "image" or "video".
        arguments: of ``get_image_features`` or ``get_video_features``, by name.
        features:  as ``features`` gives them: a list of (n, D) or a tensor (sources, n, D).
        """
        pixels = arguments.get("pixel_values_videos")
        frames = pixels.shape[1] if kind == "video" and pixels is not None and pixels.dim() == 5 else 1
        return [square_source(kind, frames, len(feature)) for feature in features]

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        """The attention modules of the vision tower that encodes ``kind``, first layer first."""
        for module in self.towers(model)[kind].modules():
            names = ("self_attn", "attn", "attention")
            if isinstance(module, nn.ModuleList):
                found = [getattr(layer, name) for layer in module for name in names if hasattr(layer, name)]
                if found and len(found) == len(module):
                    return found
        raise NotImplementedError(
            f"cannot find the attention modules in the vision tower of {type(model).__name__}; its family must define "
            "vision_layers, see vtprune/families/base.py"
        )

    def whole_layers(self, model: nn.Module, kind: str = "image") -> Sequence[int] | None:
        """The layers of the tower in which all patches of an image see each other, where others have windows; or None.

        Patches of a window see each other alone.
        """
        return getattr(self.towers(model)[kind].config, "fullatt_block_indexes", None)

    def pixel_scale(self, model: nn.Module, kind: str = "image") -> tuple[tuple, tuple] | None:
        """Mean and standard deviation by which processors for this tower normalise pixels / 255; None if not known."""
        tower = getattr(getattr(self.towers(model)[kind], "config", None), "model_type", None)
        return next((scale for towers, scale in PIXEL_SCALES.items() if tower in towers), None)

    def spread_pixels(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        """As ``spread``, of patches in the order in which their pixels come into the tower."""
        if type(self).spread is not Family.spread:
            raise NotImplementedError(
                f"no rule says which pixels {type(model).__name__} makes which visual token of: choose options that "
                "look at no pixels, or define spread_pixels, see vtprune/families/base.py"
            )
        return self.spread(model, kind, arguments, scores, lengths)

    def has_class_token(self, model: nn.Module, kind: str = "image") -> bool:
        """Whether the tower puts a class token before the patches of a tile."""
        names = {name.rpartition(".")[2] for name, _ in self.towers(model)[kind].named_parameters()}
        return not names.isdisjoint(("class_embedding", "cls_token"))

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        """Scores of the tower's patches in the places of the visual tokens: (C, n) for each source.

        kind, arguments: of the encoder call, as for ``sources``.
        scores:  (tiles, C, patches) in the order of the tower, without class tokens; a packed sequence is one tile.
        lengths: n of each source.
        A token made of several patches gets their mean, one that is no patch 0.
        """
        each, rest = divmod(len(scores), len(lengths))
        if rest:
            raise NotImplementedError(
                f"{len(scores)} tiles do not divide among {len(lengths)} images or videos; the family must define "
                "spread, see vtprune/families/base.py"
            )
        tiles = [[spread_tile(tile, n // each) for tile in some] for some, n in zip(scores.split(each), lengths)]
        return [torch.cat(some, -1) for some in tiles]


def register(family: type[Family]) -> type[Family]:
    """Class decorator: lists the family under each of its model types."""
    for model_type in family.model_types:
        FAMILIES[model_type] = family()
    return family


def check_whole(model: nn.Module) -> None:
    """Raises NotImplementedError for a model that is several, of which one sees."""
    if hasattr(model, "thinker"):
        raise NotImplementedError(
            f"{type(model).__name__} is several models, of which the thinker sees pictures: call "
            "vtprune.wrap(model.thinker, ...), and model.generate(...) as before"
        )


def family_of(model: nn.Module) -> Family:
    """The registered family of a model. Raises NotImplementedError that names the known ones and the file to write."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    check_whole(model)
    if model_type not in FAMILIES:
        raise NotImplementedError(
            f"vtprune has no family for model_type {model_type!r}; it knows {', '.join(sorted(FAMILIES))}. "
            "A new one is a file of about 30 lines: see vtprune/families/base.py. "
            "wrap(model, ..., strict=False) tries to detect it and warns"
        )
    return FAMILIES[model_type]
