"""What vision sides of a layout of their own cost: packed, padded or merging towers, and queries that read a tower.

Each function takes the model that owns ``get_image_features``, the kind of the encoder call and its arguments, and
counts weights in the modules themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from vtprune.flops import Flops

Call = Mapping[str, Any]


def ints(table: Any) -> list[list[int]]:
    """Rows of ints, from a tensor or from nested sequences."""
    return table.tolist() if isinstance(table, Tensor) else [[int(x) for x in row] for row in table]


def shape_of(pixels: Any) -> tuple[int, ...]:
    """The shape of a tensor, or the shape itself."""
    return tuple(pixels.shape) if hasattr(pixels, "shape") else tuple(pixels)


def weights(module: nn.Module) -> int:
    """Multiply-accumulates per row: weights of the linear layers and convolutions, and of a bare projection matrix."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += part.in_features * part.out_features  # the weight itself may be stored packed
        elif isinstance(part, nn.Conv2d | nn.Conv3d):
            total += part.weight.numel()
        elif (matrix := getattr(part, "mm_input_projection_weight", None)) is not None:  # Gemma 3
            total += matrix.numel()
        elif type(part).__name__ == "Ovis2VisualEmbeddingTable":  # multiplied with probabilities, not looked up
            total += part.weight.numel()
    return total


def _rows(module: nn.Module, n: int) -> Flops:
    """All linear layers and convolutions of a module on n rows."""
    return Flops(2 * weights(module) * n)


def _pairs(width: int, pairs: int, allowed: int | None = None) -> Flops:
    """Attention of queries ``width`` wide over so many pairs of a query and a key."""
    return Flops(0, 4 * width * pairs, 4 * width * (pairs if allowed is None else allowed))


def _squares(chunks: Sequence[int]) -> int:
    return sum(n * n for n in chunks)


def _layers(layers: Sequence[nn.Module], rows: int, chunks: Sequence[int], allowed: Sequence[int] | None = None):
    """Layers on ``rows`` tokens; those that attend do so within chunks of them. allowed: what of each is no padding."""
    total = Flops()
    for layer in layers:
        total += _rows(layer, rows)
        query = next(
            (m for name, m in layer.named_modules() if name.endswith(("q_proj", "q_proj.linear", "qkv"))), None
        )
        if isinstance(query, nn.Module):
            linear = next(m for m in query.modules() if isinstance(m, nn.Linear))
            width = linear.in_features if linear.out_features == 3 * linear.in_features else linear.out_features
            total += _pairs(width, _squares(chunks), None if allowed is None else _squares(allowed))
    return total


def _pixels(kind: str, call: Call) -> tuple[int, ...]:
    return shape_of(call["pixel_values" if kind == "image" or "pixel_values" in call else "pixel_values_videos"])


def _frames(kind: str, call: Call) -> list[int]:
    """Patches of each image and each frame."""
    return [h * w for t, h, w in ints(call[f"{kind}_grid_thw"]) for _ in range(t)]


# ------------------------------------------------------------------------------------------------------ the families


def _ernie(base: nn.Module, kind: str, call: Call) -> Flops:
    """Ernie 4.5: neighbours of a frame are joined, then two frames; an image stands for both."""
    tower, resampler, chunks = base.vision_tower, base.resampler_model, _frames(kind, call)
    patches, config = sum(chunks), base.config.vision_config
    joined = patches // config.spatial_merge_size**2
    tokens = joined // config.temporal_merge_size if kind == "video" else joined
    total = _rows(tower.patch_embed, patches) + _layers(tower.blocks, patches, chunks)
    total += _rows(resampler.spatial_linear, joined) + _rows(resampler.temporal_linear, tokens)
    return total + _rows(resampler.mlp, tokens)


def _lfm2(base: nn.Module, kind: str, call: Call) -> Flops:
    """LFM2-VL: tiles are padded to as many patches as the largest has."""
    tower, (tiles, room) = base.vision_tower, _pixels(kind, call)[:2]
    real = [h * w for h, w in ints(call["spatial_shapes"])]
    total = _rows(tower.embeddings.patch_embedding, tiles * room)
    total += _layers(tower.encoder.layers, tiles * room, [room] * tiles, real)
    return total + _rows(base.multi_modal_projector, sum(real) // base.config.downsample_factor**2)


def _lfm3(base: nn.Module, kind: str, call: Call) -> Flops:
    """LFM3-VL: convolutions over the grid among layers that attend within frames."""
    tower, chunks = base.vision_tower, _frames(kind, call)
    patches = sum(chunks)
    total = _rows(tower.patch_embed, patches) + _layers(tower.layers, patches, chunks)
    merged = base.multi_modal_projector.linear_1.in_features // tower.patch_embed.out_features
    return total + _rows(base.multi_modal_projector, patches // merged)


def _minicpm(base: nn.Module, kind: str, call: Call) -> Flops:
    """MiniCPM-V: patches are merged by fours in the middle of the tower, after attending within windows of four."""
    tower, sizes = base.vision_tower, call["target_sizes" if kind == "image" else "target_sizes_videos"]
    whole = [h * w for h, w in ints(sizes)]
    patches, at = sum(whole), tower.config.insert_layer_id + 1
    total, layers = _rows(tower.embeddings.patch_embedding, patches), tower.encoder.layers
    if call.get("downsample_mode") == "4x":
        return total + _layers(layers, patches, whole) + _rows(base.merger, patches // 4)
    merger, quarters = tower.vit_merger, [n // 4 for n in whole]
    total += _layers(layers[:at], patches, whole) + _layers(layers[at:], sum(quarters), quarters)
    total += _layers([merger.self_attn], patches, [4] * sum(quarters))
    total += _rows(merger.linear_1, sum(quarters)) + _rows(merger.linear_2, sum(quarters))
    return total + _rows(base.merger, sum(quarters) // 4)


def _gemma4(base: nn.Module, kind: str, call: Call) -> Flops:
    """Gemma 4: images are padded to as many patches as the largest may have; means are a product of matrices."""
    tower, (images, room) = base.vision_tower, (prod(_pixels(kind, call)[:-2]), _pixels(kind, call)[-2])
    places, block = call[f"{kind}_position_ids"].reshape(images, room, 2), tower.config.pooling_kernel_size**2
    real = (places >= 0).all(-1).sum(1).tolist()
    total = _rows(tower.patch_embedder.input_proj, images * room)
    total += _layers(tower.encoder.layers, images * room, [room] * images, real)
    total += Flops(2 * images * (room // block) * room * tower.config.hidden_size)
    return total + _rows(base.embed_vision, sum(real) // block)


def _gemma4_unified(base: nn.Module, kind: str, call: Call) -> Flops:
    """Gemma 4 Unified: no tower, but two matrices that every patch goes through, padding too."""
    return _rows(base.embed_vision, prod(_pixels(kind, call)[:-1]))


def _hunyuan(base: nn.Module, kind: str, call: Call) -> Flops:
    """HunYuan-VL: two convolutions make tokens of blocks of patches; every row of them gets a newline."""
    tower, grids, merge = (
        base.vision_tower,
        ints(call[f"{kind}_grid_thw"]),
        base.config.vision_config.spatial_merge_size,
    )
    chunks, merger = _frames(kind, call), tower.patch_merger
    sides = [(h // merge, w // merge) for t, h, w in grids for _ in range(t)]
    tokens = sum(h * w for h, w in sides)
    total = _rows(tower.embeddings.patch_embedding, sum(chunks)) + _layers(tower.layers, sum(chunks), chunks)
    total += _rows(merger.proj_conv, tokens) + _rows(merger.proj_out, tokens)
    return total + _rows(merger.mlp, sum(h * (w + 1) for h, w in sides))


def _molmo2(base: nn.Module, kind: str, call: Call) -> Flops:
    """Molmo2: each token is a query, the mean of the few patches that it reads."""
    tower, projector, (crops, patches) = base.vision_tower, base.multi_modal_projector, _pixels(kind, call)[:2]
    tokens, read = shape_of(call[f"{kind}_token_pooling"])
    pool, rows = projector.image_pooling_2d, crops * patches
    total = _rows(tower.patch_embedding, rows) + _layers(tower.layers, rows, [patches] * crops)
    total += _rows(pool.q_proj, tokens) + _rows(pool.o_proj, tokens)
    total += _rows(pool.k_proj, tokens * read) + _rows(pool.v_proj, tokens * read)
    total += _pairs(pool.q_proj.out_features, tokens * read)
    return total + _rows(projector.image_projector, tokens)


def _llama4(base: nn.Module, kind: str, call: Call) -> Flops:
    """Llama 4: tiles of one size with a class token, of which blocks are joined."""
    tower, (tiles, _, high, wide) = base.vision_model, _pixels(kind, call)
    patches = (high // tower.config.patch_size) * (wide // tower.config.patch_size)
    joined = int(tiles * patches * tower.config.pixel_shuffle_ratio**2)
    total = _rows(tower.patch_embedding, tiles * patches)
    total += _layers(tower.model.layers, tiles * (patches + 1), [patches + 1] * tiles)
    return total + _rows(tower.vision_adapter, joined) + _rows(base.multi_modal_projector, joined)


def _aria(base: nn.Module, kind: str, call: Call) -> Flops:
    """Aria: learnt queries, as many as the size of the image says, read all of its patches."""
    tower, projector, (images, _, high, wide) = base.vision_tower, base.multi_modal_projector, _pixels(kind, call)
    patches = (high // tower.config.patch_size) * (wide // tower.config.patch_size)
    queries, rows = projector.patch_to_query_dict[patches] * images, images * patches
    total = _rows(tower.embeddings.patch_embedding, rows) + _layers(tower.encoder.layers, rows, [patches] * images)
    cross = projector.cross_attn
    width = cross.multihead_attn.embed_dim
    total += _rows(cross.q_proj, queries) + _rows(cross.k_proj, rows) + _rows(cross.v_proj, rows)
    # the head projects what it is given once more: queries, keys and values, and what comes out
    total += Flops(2 * width**2 * (2 * queries + 2 * rows)) + _pairs(width, queries * patches)
    return total + _rows(cross.linear, queries) + _rows(projector.feed_forward, queries)


def _docling(base: nn.Module, kind: str, call: Call) -> Flops:
    """Granite Docling: all tiles of a batch take the coarse path behind the tower, or all take the fine one."""
    tower, mask, pixels = base.vision_model, call.get("pixel_attention_mask"), _pixels(kind, call)
    tiles = int(mask.sum()) if isinstance(mask, Tensor) else prod(pixels[:-3])
    patches = prod(side // tower.config.patch_size for side in pixels[-2:])
    path = tower.connector.coarse if call.get("tile_fine_mask") is None else tower.connector.fine
    rows, tokens = tiles * patches, tiles * patches // path.scale_factor**2
    total = _rows(tower.embeddings.patch_embedding, rows) + _layers(tower.encoder.layers, rows, [patches] * tiles)
    return total + _rows(path, tokens) + _rows(tower.connector.mlp_fc2, tokens)


def _idefics2(base: nn.Module, kind: str, call: Call) -> Flops:
    """Idefics2: learnt queries read the patches of a picture and themselves; pictures of zeros are left out."""
    tower, connector, pixels = base.vision_model, base.connector, call["pixel_values"]
    images, (high, wide) = prod(shape_of(pixels)[:-3]), shape_of(pixels)[-2:]
    if isinstance(pixels, Tensor):
        images = int((pixels != 0).flatten(0, 1).flatten(1).any(1).sum())
    patches = (high // tower.config.patch_size) * (wide // tower.config.patch_size)
    rows, resampler = images * patches, connector.perceiver_resampler
    queries = images * resampler.n_latents
    total = _rows(tower.embeddings.patch_embedding, rows) + _layers(tower.encoder.layers, rows, [patches] * images)
    total += _rows(connector.modality_projection, rows)
    for layer in resampler.layers:
        attn = layer.self_attn
        total += _rows(attn.q_proj, queries) + _rows(attn.o_proj, queries) + _rows(layer.mlp, queries)
        total += _rows(attn.k_proj, queries + rows) + _rows(attn.v_proj, queries + rows)
        total += _pairs(attn.q_proj.out_features, queries * (resampler.n_latents + patches))
    return total


def readers(projector: nn.Module, crops: int) -> Flops:
    """Granite 4 Vision: in every window of a crop a few queries read its patches and each other."""
    windows = crops * (projector.image_side // projector.window_side) ** 2
    read, asked = projector.window_side**2, projector.query_length
    queries, rows, total = windows * asked, windows * read, _rows(projector.out_linear, windows * asked)
    for layer in projector.qformer.encoder.layer:
        width = layer.attention.attention.query.out_features
        total += _rows(layer.attention, queries) + _pairs(width, queries * asked)
        total += _rows(layer.intermediate_query, queries) + _rows(layer.output_query, queries)
        if layer.has_cross_attention:
            cross = layer.crossattention
            total += _rows(cross.attention.query, queries) + _rows(cross.output, queries)
            total += _rows(cross.attention.key, rows) + _rows(cross.attention.value, rows)
            total += _pairs(width, queries * read)
    return total


TOWERS: dict[str, Callable[[nn.Module, str, Call], Flops]] = {
    "ernie4_5_vl_moe": _ernie,
    "lfm2_vl": _lfm2,
    "lfm3_vl": _lfm3,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": _minicpm,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4_unified,
    "hunyuan_vl": _hunyuan,
    "molmo2": _molmo2,
    "llama4": _llama4,
    "aria": _aria,
    "granite_docling": _docling,
    "idefics2": _idefics2,
}
"""By the model type of the base."""
