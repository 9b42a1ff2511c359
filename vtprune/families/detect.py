"""A family guessed from the shape that most transformers VLMs share, for models that no file here describes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.families.base import FAMILIES, Family, Source, check_whole, grid_source, unknown_source

_DEEPSTACK = "_deepstack_process"
_CUT = "_maybe_slice_kv_shared_inputs"
_TOKENWISE = {"per_layer_input": 1, "moe_mm_token_type_ids": 1}
_IDS = ("token_id", "token_index")
_JOINING = ("downsample_ratio", "downsample_factor", "scale_factor", "hidden_stride")

_USUAL = frozenset(
    "input_ids inputs_embeds attention_mask position_ids past_key_values use_cache cache_position logits_to_keep "
    "kwargs".split()
)
_BESIDE = {
    _DEEPSTACK: {"visual_pos_masks", "deepstack_visual_embeds"},
    "per_layer_input": {"per_layer_inputs"},
    "moe_mm_token_type_ids": {"moe_mm_token_type_ids"},
}
"""What decoders take, and what else beside a part of which it is known how it goes through pruned layers."""


class Detected(Family):
    """Takes the parts from the accessors that transformers gives every VLM and from names that its models share.

    Places are told only where the numbers of an encoder call leave one way to see them, and signals of the vision tower
    are served only where every patch is a token.
    """

    def __init__(self, model: nn.Module):
        decoder = self.decoder(model)
        self.between_layers = (_DEEPSTACK,) if hasattr(type(decoder), _DEEPSTACK) else ()
        self.cuts_rows = (_CUT,) if hasattr(type(decoder), _CUT) else ()
        taken = [inspect.signature(layer.forward).parameters for layer in decoder.layers]
        self.tokenwise = {name: dim for name, dim in _TOKENWISE.items() if any(name in some for some in taken)}
        ids = self.placeholders(model)
        same = ids.get("image") == ids.get("video")
        asked = None if "image" not in ids else fills(model, self.base(model), "video", ids["image"])
        self.videos_at_images = "video" in ids and (same or asked is True)

    def base(self, model: nn.Module) -> nn.Module:
        return model.base_model

    def decoder(self, model: nn.Module) -> nn.Module:
        decoder = model.get_decoder()
        # some models hand out the text model with its head
        return decoder if hasattr(decoder, "layers") else decoder.get_decoder()

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        return {kind: getattr(model.config, name) for kind, name in _named(model.config).items()}

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        lengths = [len(feature) for feature in features]
        grids = arguments.get(f"{kind}_grid_thw")
        if grids is None:
            return _pictures(self.base(model).config, kind, arguments, lengths)
        if len(grids) != len(lengths):
            return [unknown_source(kind, n) for n in lengths]
        merges = _merges(self.base(model).config, kind, arguments, len(lengths))
        return [_packed(kind, *map(int, grid), m, n) for grid, m, n in zip(grids, merges, lengths, strict=True)]

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        tiles, _, patches = scores.shape
        if f"{kind}_grid_thw" in arguments or tiles != len(lengths) or any(n != patches for n in lengths):
            raise NotImplementedError(
                f"which of the patches of its vision tower make which visual token is not known of "
                f"{type(model).__name__}, as vtprune only detected its parts: choose a policy without signals of the "
                "vision tower, or write a family, see vtprune/families/base.py"
            )
        return list(scores)

    def notes(self, model: nn.Module) -> list[str]:
        """What was found and how, and what nobody has verified."""
        config, base, decoder = model.config, self.base(model), self.decoder(model)
        told = []
        for kind, name in _named(config).items():
            token = getattr(config, name)
            known = "confirmed" if fills(model, base, kind, token) else "not confirmed"
            if kind == "image" or not self.videos_at_images:
                told.append(f"{kind} {token} ({name}, {known} by the model's own mask)")
        found = [f"{type(decoder).__name__} as the decoder", f"placeholders {', '.join(told)}"]
        found += [f"DeepStack by {name}" for name in self.between_layers]
        found += [f"the layers' {name}, one for each token" for name in self.tokenwise]
        found += ["videos at the placeholders of images"] if self.videos_at_images else []
        tower = next((type(one).__name__ for one in self.towers(model).values()), None)
        seen = f"are those of {tower}, served only where each token is one patch" if tower else "cannot be served"
        return [
            f"found {'; '.join(found)}",
            "places in grids are told only where the numbers of an encoder call leave one way to see them",
            f"signals of the vision tower {seen}",
            "what is added to visual tokens between layers, and masks that let pictures see both ways, were not tested",
        ]


def fills(model: nn.Module, base: nn.Module, kind: str, token: int) -> bool | None:
    """Whether features of ``kind`` go to the placeholder ``token``, by the mask that the model itself would use.

    None where it has no such method, or one that cannot be asked this.
    """
    ask = getattr(base, "get_placeholder_mask", None)
    if ask is None:
        return None
    parameters = inspect.signature(ask).parameters
    kinds = [name.removesuffix("_features") for name in parameters if name.endswith("_features")] or ["image", "video"]
    if kind not in kinds:
        return None
    table = model.get_input_embeddings()
    ids = torch.tensor([[token]], device=table.weight.device)
    with torch.no_grad():
        embeds = table(ids)
    given = {f"{kind}_features": embeds} if f"{kind}_features" in parameters else {}
    try:
        masks = ask(ids, embeds, **given)
    except TypeError:
        return None
    except (ValueError, RuntimeError):
        return False
    masks = masks if isinstance(masks, tuple) else (masks,)
    return bool(masks[kinds.index(kind)].all()) if kinds.index(kind) < len(masks) else None


def _named(config: Any) -> dict[str, str]:
    """The field of the config that holds the placeholder of each modality."""
    found = {}
    for kind in ("image", "video"):
        names = [f"{kind}_{ending}" for ending in _IDS if isinstance(getattr(config, f"{kind}_{ending}", None), int)]
        found.update({kind: names[0]} if names else {})
    return found


def _merges(config: Any, kind: str, arguments: Mapping, count: int) -> list[tuple[int, int] | None]:
    """How many patches high and wide a token of each source is, as far as anybody says."""
    told = arguments.get(f"{kind}_merge_sizes")
    if told is not None:
        return [(int(merge), int(merge)) for merge in told]
    vision = getattr(config, "vision_config", None)
    merge = next((v for n in ("spatial_merge_size", "merge_kernel_size") if (v := getattr(vision, n, None))), None)
    return [None if merge is None else (merge, merge) if isinstance(merge, int) else tuple(merge)] * count


def _packed(kind: str, t: int, h: int, w: int, merge: tuple[int, int] | None, n: int) -> Source:
    """n tokens of t x h x w patches: a grid if frames stay or are all joined, whichever n says."""
    if merge is None or h % merge[0] or w % merge[1]:
        return unknown_source(kind, n)
    high, wide = h // merge[0], w // merge[1]
    frames, rest = divmod(n, high * wide)
    return grid_source(kind, frames, high, wide) if not rest and frames in (1, t) else unknown_source(kind, n)


def _pictures(config: Any, kind: str, arguments: Mapping, lengths: Sequence[int]) -> list[Source]:
    """Sources of pixels: a grid where each picture or clip has tokens of its own, made of squares of its patches."""
    pixels = arguments.get("pixel_values" if kind == "image" else "pixel_values_videos")
    patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
    known = isinstance(pixels, Tensor) and pixels.dim() == (4 if kind == "image" else 5) and isinstance(patch, int)
    if not known or len(pixels) != len(lengths):
        return [unknown_source(kind, n) for n in lengths]
    frames = 1 if kind == "image" else pixels.shape[1]
    high, wide = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    joined = {1, *_joined(config), *_joined(config.vision_config)}
    return [_tiled(kind, frames, high, wide, joined, n) for n in lengths]


def _joined(config: Any) -> set[int]:
    """How many patches a token is wide, by the names that configs have for it."""
    said = [getattr(config, name, None) for name in _JOINING]
    return {value for value in said if isinstance(value, int)} | {
        round(1 / value) for value in said if isinstance(value, float) and 0 < value < 1
    }


def _tiled(kind: str, frames: int, high: int, wide: int, joined: set[int], n: int) -> Source:
    """n tokens of ``frames`` pictures of high x wide patches, of which squares of one of these widths make a token."""
    for block in sorted(joined):
        if high % block == wide % block == 0 and frames * high * wide == n * block**2:
            return grid_source(kind, frames, high // block, wide // block)
    return unknown_source(kind, n)


def detect_family(model: nn.Module) -> Family:
    """The registered family if there is one, otherwise a guess.

    Raises NotImplementedError that says which part of the usual shape is missing.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    check_whole(model)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    missing = _missing(model)
    if missing:
        raise NotImplementedError(
            f"vtprune cannot detect the parts of {type(model).__name__} (model_type {model_type!r}): it lacks "
            f"{', '.join(missing)}. Write a family: see vtprune/families/base.py"
        )
    family = Detected(model)
    token = family.placeholders(model)["image"]
    if fills(model, family.base(model), "image", token) is False:
        raise NotImplementedError(
            f"the config of {type(model).__name__} (model_type {model_type!r}) names {token} as the placeholder of "
            "images, and the model's own mask does not. Write a family that knows it: see vtprune/families/base.py"
        )
    decoder = family.decoder(model)
    parts = (*family.between_layers, *family.tokenwise)
    known = _USUAL.union(*(_BESIDE[part] for part in parts))
    taken = sorted(set(inspect.signature(decoder.forward).parameters) - known)
    if taken:
        raise NotImplementedError(
            f"{type(decoder).__name__} (model_type {model_type!r}) takes {', '.join(taken)}, and vtprune cannot guess "
            "what its layers make of that when they are pruned. Write a family: see vtprune/families/base.py"
        )
    return family


def _missing(model: nn.Module) -> list[str]:
    """Parts of the usual shape that a model lacks."""
    if not hasattr(model, "get_decoder") or not hasattr(model, "base_model"):
        return ["get_decoder() and base_model"]
    missing, decoder = [], model.get_decoder()
    if not hasattr(model.base_model, "get_image_features"):
        missing.append("get_image_features on the base model")
    if decoder is None or decoder is model or decoder is model.base_model:
        missing.append("a decoder of its own")
    elif not hasattr(decoder, "layers") and not hasattr(getattr(decoder, "get_decoder", object)(), "layers"):
        missing.append("a list of decoder layers called layers")
    if hasattr(model, "config") and "image" not in _named(model.config):
        missing.append("image_token_id in the config")
    return missing
