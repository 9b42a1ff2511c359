"""What the pictures of a prompt cost before the decoder: FLOPs of the vision tower and of the projector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

from torch import Tensor, nn

from vtprune.families.base import Family, family_of
from vtprune.flops import Flops
from vtprune.flops_towers import TOWERS, ints, readers, shape_of, weights


@dataclass(frozen=True)
class _Encoded:
    """What one encoder call makes the modules of the vision side compute, in rows.

    images:    pictures or frames that the tower saw.
    embedded:  patches that the patch embedding computed.
    chunks:    tokens of each stretch that attends within itself in a full layer, class token included.
    squares:   sum of n^2 over the windows of a windowed layer; None where every layer is full.
    projected: rows of the projector, or of the mergers where those are inside the tower.
    merging:   whether they are.
    """

    images: int
    embedded: int
    chunks: Sequence[int]
    projected: int
    squares: int | None = None
    merging: bool = False


def vision_flops(model: nn.Module, base: nn.Module, calls: Sequence[Mapping[str, Any]]) -> Flops:
    """FLOPs of the vision tower and the projector in encoder calls; weights are counted in the modules themselves.

    model: whose family is registered; base: the part of it that owns ``get_image_features``.
    calls: the arguments of each call of ``get_image_features`` or ``get_video_features``, by name, and under "kind"
           which of them it was, "image" or "video". Without a kind, ``pixel_values_videos`` tells a video, which is not
           enough in transformers 5.9. Calls that such a call makes itself (Qwen3-VL's for videos) are not to be listed.
           For pixels a shape will do. Idefics3 and SmolVLM skip pictures that are all zero, which only a tensor shows:
           given a shape, all of them are counted.

    Equal to ``torch.utils.flop_counter`` to the last operation for llava (CLIP, SigLIP and Pixtral towers), llava_next,
    llava_next_video, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, idefics3, smolvlm, gemma3, paligemma,
    mistral3, video_llava, vipllava, deepseek_vl, aya_vision, cohere2_vision, ovis2, qianfan_ocr and lighton_ocr, images
    and videos (tests/test_flops_vision.py, tests/test_newer_pictures.py), qwen3_vl_moe, the thinkers of qwen2_5_omni
    and qwen3_omni_moe, glm4v, glm46v, glm4v_moe, paddleocr_vl, video_llama_3 and kimi_k25 (tests/test_newer_costs.py),
    qwen3_5 and qwen3_5_moe (tests/test_flops_linear.py), ernie4_5_vl_moe, lfm2_vl, lfm3_vl, minicpmv4_6, minicpmv4_7,
    gemma4, gemma4_unified, hunyuan_vl, molmo2, llama4, aria, idefics2, granite_docling, granite4_vision, janus and
    hyperclovax_vision_v2 (tests/test_flops_towers.py). Pixtral towers run several pictures as one masked sequence
    unless FlashAttention is on, so there ``attention`` is the square of the sum and ``attention_causal`` the sum of the
    squares. Averages, but for Gemma 4's, which are a product of matrices, interpolation, norms and rotary tables are
    not counted.
    Raises NotImplementedError for other families.
    """
    family = family_of(model)
    return sum((_call_flops(family, model, base, call) for call in calls), Flops())


def _call_flops(family: Family, model: nn.Module, base: nn.Module, call: Mapping[str, Any]) -> Flops:
    kind = call.get("kind") or ("image" if call.get("pixel_values_videos") is None else "video")
    if kind not in ("image", "video"):
        raise ValueError(f'the kind of an encoder call is "image" or "video"; got {kind!r}')
    towers = family.towers(model)
    tower, name = towers.get(kind), base.config.model_type
    if name in TOWERS:
        return TOWERS[name](base, kind, call)
    if name in _UNKNOWN:
        raise NotImplementedError(f"vision FLOPs are unknown for {name!r}: {_UNKNOWN[name]}")
    if tower is None:
        raise NotImplementedError(f"vision FLOPs are unknown for {name!r}, of which no tower with attention is known")
    if name in _GRID_FAMILIES:
        encoded = _grid_call(tower.config, ints(call[f"{kind}_grid_thw"]))
    elif name in _PACKED:
        encoded = _PACKED[name](base.config.vision_config, kind, call)
    elif name in _PROJECTED and tower.config.model_type in _TOWERS:
        encoded = _pixel_call(family, model, base, tower, kind, call)
    else:
        raise NotImplementedError(
            f"vision FLOPs are unknown for {name!r} with a tower {tower.config.model_type!r}; known are "
            f"{', '.join((*_GRID_FAMILIES, *_PACKED, *TOWERS))}, and {', '.join(_PROJECTED)} with a tower among "
            f"{', '.join(_TOWERS)}"
        )
    total = _tower_flops(tower, _blocks(tower), encoded)
    if name in _GRID_FAMILIES and name not in _GRID_PROJECTED:
        return total
    other = {id(module) for module in (family.decoder(model), *towers.values())}
    if name == "granite4_vision":
        projectors = [*base.layerwise_projectors, *base.spatial_projectors]
        return sum((readers(projector, encoded.images) for projector in projectors), total)
    idle = _IDLE.get(name, ())
    used = [child for part, child in base.named_children() if id(child) not in other and part not in idle]
    return total + Flops(2 * sum(map(weights, used)) * encoded.projected)


_GRID_FAMILIES = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
    *("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "qwen3_5", "qwen3_5_moe"),
    *("cosmos3_omni", "exaone4_5", "hyperclovax_vision_v2"),
)
_GRID_PROJECTED = ("hyperclovax_vision_v2",)
"""Those of them with a projector behind the tower's merger."""
_UNKNOWN = {
    **dict.fromkeys(("gemma3n", "fast_vlm", "perception_lm"), "its tower is a timm model, whose layers are not known"),
    **dict.fromkeys(
        ("deepseek_vl_hybrid", "deepseek_ocr2", "got_ocr2"), "most layers of a tower of it attend within padded windows"
    ),
    "phi4_multimodal": "its decoder encodes pictures itself, in crops of which the call does not tell",
}
"""Why of a base."""
_IDLE = {"janus": ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head")}
"""Parts beside the tower that draw pictures and see none."""
_TOWERS = (
    *("clip_vision_model", "siglip_vision_model", "pixtral"),
    *("internvl_vision", "idefics3_vision", "smolvlm_vision", "ovis2_vision"),
    *("qianfan_ocr_vision", "janus_vision_model"),
)


# ------------------------------------------------------------------------------------------------ what a call encodes


def _grid_call(config: Any, grids: list[list[int]]) -> _Encoded:
    """Qwen and GLM: frames of h x w patches attend within themselves; some layers of Qwen2.5 within windows instead."""
    merge = config.spatial_merge_size
    patches = sum(t * h * w for t, h, w in grids)
    squares = None
    if getattr(config, "window_size", None):
        side = config.window_size // merge // config.patch_size
        # the squares of the windows' areas are products of the squares of their edges
        edges = [(t, *(_cut_squares(edge // merge, side) for edge in (h, w))) for t, h, w in grids]
        squares = sum(t * high * wide for t, high, wide in edges) * merge**4
    chunks = [h * w for t, h, w in grids for _ in range(t)]
    return _Encoded(len(grids), patches, chunks, patches // merge**2, squares, merging=True)


def _cut_squares(length: int, side: int) -> int:
    """Sum of the squares of the pieces of ``length`` cut into pieces of ``side`` and a rest."""
    return length // side * side**2 + (length % side) ** 2


def _frames_call(config: Any, kind: str, call: Mapping[str, Any]) -> _Encoded:
    """PaddleOCR-VL and VideoLLaMA 3: each frame attends within itself, tokens are made of its patches afterwards."""
    grids = ints(call[f"{kind}_grid_thw"])
    merges = call.get(f"{kind}_merge_sizes")
    merges = [config.spatial_merge_size] * len(grids) if merges is None else [int(merge) for merge in merges]
    projected = sum(t * (h // merge) * (w // merge) for (t, h, w), merge in zip(grids, merges, strict=True))
    chunks = [h * w for t, h, w in grids for _ in range(t)]
    return _Encoded(len(grids), sum(chunks), chunks, projected)


def _chunks_call(config: Any, kind: str, call: Mapping[str, Any]) -> _Encoded:
    """Kimi K2.5: all frames of a chunk attend to each other and leave the tokens of one."""
    grids = ints(call[f"{kind}_grid_thw"])
    chunks = [t * h * w for t, h, w in grids]
    projected = sum(h * w for _, h, w in grids) // prod(config.merge_kernel_size)
    return _Encoded(len(grids), sum(chunks), chunks, projected)


_PACKED: dict[str, Callable[[Any, str, Mapping[str, Any]], _Encoded]] = {
    "paddleocr_vl": _frames_call,
    "video_llama_3": _frames_call,
    "kimi_k25": _chunks_call,
}


def _pixel_call(
    family: Family, model: nn.Module, base: nn.Module, tower: nn.Module, kind: str, call: Mapping[str, Any]
) -> _Encoded:
    """Towers that take pictures as pixels: of one size, or (Pixtral) of sizes of their own inside padding."""
    images, height, width = _pictures(family, model, kind, call)
    conv = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
    high, wide = ((n - k) // s + 1 for n, k, s in zip((height, width), conv.kernel_size, conv.stride))
    grids = [(high, wide)] * images
    if tower.config.model_type == "pixtral" and call.get("image_sizes") is not None:
        patch = tower.config.patch_size
        grids = [(h // patch, w // patch) for h, w in ints(call["image_sizes"])]
    first = 1 if any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters()) else 0
    rows = _PROJECTED[base.config.model_type]
    projected = sum(rows(base.config, kind, call, h, w, first) for h, w in grids)
    merging = tower.config.model_type == "ovis2_vision"
    return _Encoded(images, images * high * wide, [h * w + first for h, w in grids], projected, merging=merging)


def _pictures(family: Family, model: nn.Module, kind: str, call: Mapping[str, Any]) -> tuple[int, int, int]:
    """Pictures that reach the tower, their height and width."""
    names = ("pixel_values_videos", "pixel_values", "pixel_values_images")
    pixels = next((call[name] for name in names if call.get(name) is not None), None)
    if pixels is None:
        raise ValueError(f"an encoder call has one of {', '.join(names)}; got {sorted(call)}")
    shape = shape_of(pixels)
    images, tiles = prod(shape[:-3]), getattr(family, "tiles", None)
    if tiles is not None and len(shape) == 5 and kind == "image":
        images = sum(tiles(model, call))  # the rest is padding of images with fewer crops
    elif model.config.model_type in ("idefics3", "smolvlm") and isinstance(pixels, Tensor):
        real = int((pixels != 0).flatten(0, 1).flatten(1).any(1).sum())
        images = max(real, 1) if model.config.model_type == "smolvlm" else real
    return images, shape[-2], shape[-1]


# ----------------------------------------------------------- rows of the projector for one picture of h x w patches


def _selected(config: Any, kind: str, call: Mapping[str, Any], h: int, w: int, first: int) -> int:
    """LLaVA: all tokens of the tower, without the first if so asked."""
    strategy = call.get("vision_feature_select_strategy") or getattr(config, "vision_feature_select_strategy", "full")
    return h * w + first - (strategy == "default")


def _next_video(config: Any, kind: str, call: Mapping[str, Any], h: int, w: int, first: int) -> int:
    """LLaVA-NeXT-Video: the frames of a video are pooled before they are projected."""
    tokens = _selected(config, kind, call, h, w, first)
    return tokens if kind == "image" else (isqrt(tokens) // config.spatial_pool_stride) ** 2


def _video_llava(config: Any, kind: str, call: Mapping[str, Any], h: int, w: int, first: int) -> int:
    """Video-LLaVA: the frames of a video keep their class token."""
    return h * w + first if kind == "video" else _selected(config, kind, call, h, w, first)


def _shuffled(config: Any, kind: str, call: Mapping[str, Any], h: int, w: int, first: int) -> int:
    """InternVL: neighbours are folded into channels."""
    return int(_selected(config, kind, call, h, w, first) * config.downsample_ratio**2)


def _merged(config: Any, h: int, w: int) -> int:
    """Mistral3: blocks of patches."""
    return (h // config.spatial_merge_size) * (w // config.spatial_merge_size)


_PROJECTED: dict[str, Callable[[Any, str, Mapping[str, Any], int, int, int], int]] = {
    "llava": _selected,
    "llava_next": _selected,
    "llava_onevision": _selected,
    "llava_next_video": _next_video,
    "video_llava": _video_llava,
    "internvl": _shuffled,
    "qianfan_ocr": _shuffled,
    "idefics3": lambda config, kind, call, h, w, first: h * w // config.scale_factor**2,
    "smolvlm": lambda config, kind, call, h, w, first: h * w // config.scale_factor**2,
    "granite4_vision": lambda config, kind, call, h, w, first: 0,
    "gemma3": lambda config, kind, call, h, w, first: isqrt(config.mm_tokens_per_image) ** 2,
    "paligemma": lambda config, kind, call, h, w, first: h * w,
    "vipllava": lambda config, kind, call, h, w, first: h * w,
    "deepseek_vl": lambda config, kind, call, h, w, first: h * w,
    "janus": lambda config, kind, call, h, w, first: h * w,
    "aya_vision": lambda config, kind, call, h, w, first: h * w // config.downsample_factor**2,
    "cohere2_vision": lambda config, kind, call, h, w, first: h * w // config.downsample_factor**2,
    "ovis2": lambda config, kind, call, h, w, first: (
        -(-h // config.vision_config.hidden_stride) * -(-w // config.vision_config.hidden_stride)
    ),
    "mistral3": lambda config, kind, call, h, w, first: _merged(config, h, w),
    "lighton_ocr": lambda config, kind, call, h, w, first: _merged(config, h, w),
}


# ------------------------------------------------------------------------------------------ what the modules compute


def _blocks(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers: the first list of modules as long as the config says."""
    depth = getattr(tower.config, "num_hidden_layers", None) or tower.config.depth
    return next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


def _tower_flops(tower: nn.Module, blocks: nn.ModuleList, encoded: _Encoded) -> Flops:
    conv = next(module for module in tower.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    width, tokens = conv.out_channels, sum(encoded.chunks)
    inside, patch = weights(blocks), conv.weight.numel()
    rest = weights(tower) - inside - patch  # mergers (Qwen) or a pooling head (SigLIP)
    once = encoded.projected if encoded.merging else encoded.images
    linear = inside * tokens + patch * encoded.embedded + rest * once
    scores = 0
    for head in (module for module in tower.modules() if isinstance(module, nn.MultiheadAttention)):
        linear += head.embed_dim**2 * (encoded.images + 2 * tokens)  # one query per picture, keys and values of all
        scores += tokens
    allowed = scores
    full = getattr(tower.config, "fullatt_block_indexes", range(len(blocks)))
    packed = tower.config.model_type == "pixtral" and "flash" not in (tower.config._attn_implementation or "")
    for index in range(len(blocks)):
        windowed = index not in full and encoded.squares is not None
        within = encoded.squares if windowed else sum(n * n for n in encoded.chunks)
        allowed += within
        scores += tokens**2 if packed else within
    return Flops(2 * linear, 4 * width * scores, 4 * width * allowed)
