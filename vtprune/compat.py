"""Every difference between versions of transformers that vtprune must know, in one place."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def with_attention(config: Any, implementation: str) -> Any:
    """A shallow copy of ``config`` that names another attention implementation; ``config`` itself stays as it is.

    The public property would pass the name on to sub-configs, which the copy shares with the model (seen in 5.23).
    """
    changed = copy.copy(config)
    changed.__dict__["_attn_implementation_internal"] = implementation
    return changed


def attention_window(attn: Any) -> int | None:
    """How many tokens back an attention module sees, itself included; None: all. As it tells its attention function.

    Some modules hold it themselves, Mistral's and its like read it from the config (seen in 5.23).
    """
    if not getattr(attn, "is_sliding", True):
        return None
    if hasattr(attn, "sliding_window"):
        return attn.sliding_window
    return getattr(attn.config, "sliding_window", None)


@torch.no_grad()
def compared_keys(attn: Any, keys: Tensor, values: Tensor) -> Tensor:
    """(B, H_kv, K, d) what an attention module compares queries with, from what its cache holds.

    Latent attention (DeepSeek's MLA) stores latents where others have keys, and rotated parts of keys where others have
    values; the module makes keys of them whenever it reads them (seen in 5.23).
    """
    return compared(attn, keys, values)[0]


@torch.no_grad()
def compared(attn: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The keys as in ``compared_keys``, and the values that go with them."""
    return attn.expand_kv(keys, values) if stores_latents(attn) else (keys, values)


def stores_latents(attn: Any) -> bool:
    """Whether an attention module keeps latents in its cache, which all its heads share."""
    return hasattr(attn, "expand_kv")


def anyres_crops(image_sizes: Tensor | Sequence, grid_pinpoints: Sequence, image_size: int) -> list[tuple[int, int]]:
    """The rows and columns of crops that each image is cut into, the thumbnail not among them.

    image_sizes:    (images, 2) height and width in pixels, a tensor or pairs.
    grid_pinpoints: the (height, width) that an image may be resized to.
    image_size:     edge of a crop in pixels.

    Of the pinpoints the one is taken that keeps most pixels of the image, and of several of those the smallest.
    """
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    crops = []
    for height, width in sizes:

        def fit(pinpoint: Sequence[int], height: int = int(height), width: int = int(width)) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - pinpoint[0] * pinpoint[1]

        best = max(grid_pinpoints, key=fit)
        crops.append((-(-best[0] // image_size), -(-best[1] // image_size)))
    return crops


def anyres_tiles(image_sizes: Tensor | Sequence, grid_pinpoints: Sequence, image_size: int) -> list[int]:
    """How many crops each image is cut into, the thumbnail included; arguments as for ``anyres_crops``."""
    return [1 + rows * columns for rows, columns in anyres_crops(image_sizes, grid_pinpoints, image_size)]


def attention_kind(config: Any) -> str:
    """The attention implementation of a text config ("sdpa", "eager", "flash_attention_2", ...)."""
    return config._attn_implementation or "eager"


def layer_type(decoder: Any, index: int) -> str | None:
    """The kind of a decoder layer ("full_attention", "sliding_attention", ...), None where there is one kind only.

    Molmo2's layers differ by the rotary tables that they are given, "scaled" or "unscaled" (5.23).
    """
    types = getattr(decoder.config, "layer_types", None) or getattr(decoder, "rope_types", None)
    return types[index] if types else None


def kv_sources(config: Any) -> dict[int, int]:
    """Layers of a text config that attend to the keys and values of an earlier layer -> that layer.

    Gemma3n, Gemma4: the last layers reuse those of the last earlier layer of their kind. 5.23 lists this in
    ``kv_sharing_modes``; where only the number of sharing layers is told, they are the last ones.
    """
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    if not shared:
        return {}
    layers = config.num_hidden_layers
    modes = getattr(config, "kv_sharing_modes", None) or [None] * (layers - shared) + ["reuse"] * shared
    last, sources = {}, {}
    for index, (kind, mode) in enumerate(zip(config.layer_types, modes, strict=True)):
        if mode == "reuse":
            sources[index] = last[kind]
        else:
            last[kind] = index
    return sources


def has_state_masks() -> bool:
    """Whether layers that keep a state are given a mask (B, q) of the columns of the forward, at any batch size.

    5.16 and 5.23 give it; in 5.9 it was left out for one sample, and padding got into the state.
    """
    from transformers import masking_utils  # it brings in much of torch that `import vtprune` does without

    return hasattr(masking_utils, "create_recurrent_attention_mask")


def layer_heads(config: Any, index: int) -> tuple[int, int, int]:
    """Query heads, key heads and head size of one layer of a text config whose layers may differ.

    Gemma 4's layers that see everything have heads of their own: 5.23 has a config for each layer, 5.9 fields.
    """
    own = config.per_layer_config[index] if hasattr(config, "per_layer_config") else config
    keys, size = own.num_key_value_heads, own.head_dim
    if own is config and config.layer_types[index] == "full_attention":
        size = getattr(config, "global_head_dim", None) or size
        if getattr(config, "attention_k_eq_v", False):
            keys = getattr(config, "num_global_key_value_heads", None) or keys
    return config.num_attention_heads, keys, size


def rotary(decoder: Any, index: int, hidden: Tensor, position_ids: Tensor) -> Any:
    """The rotary tables of decoder layer ``index`` for positions (B, K).

    Gemma3's rotary module takes the layer type too (5.0 to 5.23).
    """
    if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters:
        return decoder.rotary_emb(hidden, position_ids, layer_type(decoder, index))
    if layer_type(decoder, index) == "unscaled":
        return decoder.rotary_emb_unscaled(hidden, position_ids)
    return decoder.rotary_emb(hidden, position_ids)


def rotary_ahead(decoder: Any, index: int, hidden: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (count, d) of layer ``index`` for ``count`` text tokens from position ``first`` on.

    Where positions have three coordinates, those of text are equal, and so are its tables (seen from 5.9 to 5.23).
    """
    ids = torch.arange(first, first + count, device=hidden.device)[None]
    if not has_line_positions(decoder):
        ids = ids.expand(position_rows(decoder), 1, count)
    with rotary_as_before(decoder):
        tables = rotary(decoder, index, hidden, ids)
    if not isinstance(tables, (tuple, list)) or len(tables) != 2:
        raise NotImplementedError(
            f"{type(decoder).__name__} does not rotate by cosines and sines, so it cannot be told how later queries "
            "will be rotated; choose a policy that looks at queries of the prompt"
        )
    cos, sin = (table.reshape(-1, count, table.shape[-1])[0] for table in tables)
    return cos, sin


@contextmanager
def rotary_as_before(decoder: Any) -> Iterator[None]:
    """Puts the rotary module back into its state: dynamic ones remember the longest sequence (5.23)."""
    module = getattr(decoder, "rotary_emb", None)
    if module is None:
        yield
        return
    own, buffers = dict(vars(module)), {name: (x, x.clone()) for name, x in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        for name in vars(module).keys() - own.keys():
            del vars(module)[name]
        vars(module).update(own)
        for name, (buffer, before) in buffers.items():
            # in place, as a graph may hold the address
            setattr(module, name, buffer.copy_(before))


def has_line_positions(decoder: Any) -> bool:
    """Whether positions are one number for each token, and the decoder's own rotary module computes the tables."""
    parameters = getattr(decoder.config, "rope_parameters", None) or {}
    return hasattr(decoder, "rotary_emb") and "mrope_section" not in parameters


def position_rows(decoder: Any) -> int:
    """How many coordinates the positions of a decoder have that are no line: time, height and width, or four."""
    return len((getattr(decoder.config, "rope_parameters", None) or {}).get("mrope_section", (0, 0, 0)))


def is_compiled_call() -> bool:
    """Whether this runs under torch.compile: traced, or in plain Python after a graph break.

    ``torch.compiler.is_compiling`` is False after a graph break, while the frames below are compiled one by one; the
    callback that does so is private to torch (2.2 to 2.13).
    """
    return torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None


def with_video_pixels(kind: str, arguments: Mapping) -> Mapping:
    """Arguments of an encoder call in which the pixels of videos are called ``pixel_values_videos``.

    LLaVA-NeXT-Video and OneVision called them ``pixel_values`` (5.9 and 5.16).
    """
    if kind != "video" or "pixel_values_videos" in arguments or "pixel_values" not in arguments:
        return arguments
    return {**arguments, "pixel_values_videos": arguments["pixel_values"]}


def feature_layer(config: Any) -> Any:
    """Which layers of the vision tower the projector reads, one or several; None where the config does not say.

    ViP-LLaVA calls them ``vision_feature_layers`` in 5.9 and 5.16.
    """
    return getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))


def picture_base(model: Any) -> Any:
    """The model that encodes pictures and puts them into the prompt.

    The Omni thinkers do so themselves in 5.9 and 5.16, where their ``model`` is the text model.
    """
    inner = getattr(model, "model", model)
    return model if hasattr(model, "get_image_features") and not hasattr(inner, "get_image_features") else inner


def text_part(base: Any) -> Any:
    """The text model of a base: ``language_model``, ``text_model``, or in the older Omni thinkers ``model``."""
    name = next((name for name in ("language_model", "text_model") if hasattr(base, name)), "model")
    return getattr(base, name)


def joined_frames(features: Sequence[Tensor]) -> list[Tensor]:
    """(n, D) of each video, where the encoder may keep the tokens of its frames apart, (frames, n / frames, D).

    LLaVA-NeXT-Video's does in 5.9 and 5.16.
    """
    return [feature.flatten(0, -2) for feature in features]


def takes_encoded(model: Any) -> bool:
    """Whether ``generate`` takes ``mm_encoder_outputs``, what the vision tower gave before.

    Seen in 5.23; 5.9 and 5.16 encode within the first forward.
    """
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    return callable(supports) and bool(supports())
