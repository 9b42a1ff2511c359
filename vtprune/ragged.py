"""Attention over samples of unequal length without their padding, for models on scaled_dot_product_attention.

Padding needs an explicit mask, and with one torch neither skips what is hidden nor takes its fastest kernels. So the
mask of a ragged prefill may know the samples' lengths: asked with it, scaled_dot_product_attention answers sample by
sample, causally. Nothing is replaced or patched: a mask is an argument, and torch lets the types of arguments answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.pack import pack, unpack

RAGGED = ("auto", "padded", "packed")
"""How samples of unequal length attend in a prefill: padded and masked, packed, or whichever was measured faster."""

Attend = Callable[[Tensor, Tensor, Tensor, "RaggedMask", float | None], Tensor]
"""query (B, H, n, d), key and value (B, H or fewer, n, d), mask, scale -> (B, H, n, d), zeros for padding."""


def check_ragged(ragged: str) -> None:
    """Raises ValueError for a word that is not in ``RAGGED``."""
    if ragged not in RAGGED:
        raise ValueError(f"ragged is one of {', '.join(map(repr, RAGGED))}; got {ragged!r}")


def packs(ragged: str, kind: str, device: torch.device) -> bool:
    """Whether a ragged prefill on ``device`` is packed in a model whose attention implementation is ``kind``.

    FlashAttention packs by itself; the others take masks. "auto" packs where that was measured to be faster.
    """
    return kind == "sdpa" and (ragged == "packed" or (ragged == "auto" and device.type == "cpu"))


class RaggedMask(Tensor):
    """A causal mask (B, 1, n, n), bool, of samples that are the last ``lengths[b]`` of n rows, behind their padding.

    scaled_dot_product_attention on queries and keys of n rows answers sample by sample, zeros for padding. Everything
    else sees a plain tensor, and gives plain tensors.

    valid: (B, n) bool on the mask's device, False for padding.
    """

    lengths: tuple[int, ...]
    valid: Tensor

    @staticmethod
    def of(mask: Tensor, valid: Tensor, lengths: Sequence[int]) -> RaggedMask:
        """mask: (B, 1, n, n) bool, True for what a query sees; its memory is shared."""
        made = mask.as_subclass(RaggedMask)
        made.valid, made.lengths, made.version = valid, tuple(lengths), _version(mask)
        return made

    @staticmethod
    def if_causal(mask: Tensor, valid: Tensor, lengths: Sequence[int]) -> Tensor:
        """``of`` a mask of the model's own, if it lets rows that are not padding see those up to themselves and no
        others; else the mask itself. On a GPU this waits for the device."""
        if mask.dtype != torch.bool or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
            return mask
        causal = valid.new_ones(mask.shape[2:]).tril() & valid[:, None, None, :]
        same = (mask == causal) | ~valid[:, None, :, None]
        return RaggedMask.of(mask, valid, lengths) if bool(same.all()) else mask

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: int):
        return self.clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:
                answer = _answer(*args, **kwargs)
                if answer is not None:
                    return answer
            out = func(*args, **kwargs)
            return args[0] if func is Tensor.__getitem__ and _is_whole(out, args[0]) else out


def _version(mask: Tensor) -> int | None:
    # tensors of inference mode do not count their changes
    return None if mask.is_inference() else mask._version


def _is_whole(part: Tensor, mask: Tensor) -> bool:
    """Whether slices took everything, as models do that cut a mask to the length of their keys."""
    same = part.shape == mask.shape and part.stride() == mask.stride()
    return same and part.data_ptr() == mask.data_ptr() and part.dtype == mask.dtype


def _answer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **unknown,
) -> Tensor | None:
    """What scaled_dot_product_attention answers to these arguments; None if it is not about the rows of the mask."""
    if not isinstance(attn_mask, RaggedMask) or dropout_p or is_causal or unknown:
        return None
    # whoever wrote into the mask meant something else
    if query.dim() != 4 or _version(attn_mask) != attn_mask.version:
        return None
    rows = (len(attn_mask.lengths), attn_mask.shape[-1])
    if any((x.shape[0], x.shape[2]) != rows for x in (query, key, value)):
        return None
    if query.shape[1] != key.shape[1] and not enable_gqa:
        return None
    return back_end(query, value)(query, key, value, attn_mask, scale)


# ---- what computes it


def back_end(query: Tensor, value: Tensor) -> Attend:
    """The fastest way for such queries and values: FlashAttention's own package, torch's copy of it, or one by one.

    FlashAttention takes half precisions on CUDA devices of compute capability 8.0 and up, and heads of up to 256, in
    eights.
    """
    d = query.shape[-1]
    half = query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16)
    if half and d == value.shape[-1] <= 256 and d % 8 == 0:
        if torch.cuda.get_device_capability(query.device) >= (8, 0):
            return flash_attend() or varlen_attend() or one_by_one
    return one_by_one


def one_by_one(query: Tensor, key: Tensor, value: Tensor, mask: RaggedMask, scale: float | None) -> Tensor:
    """Every sample alone: causal, so that torch skips what is hidden."""
    batch, heads, n, _ = query.shape
    # as attention modules turn it afterwards, so that nothing is copied then
    out = value.new_zeros(batch, n, heads, value.shape[-1])
    for b, length in enumerate(mask.lengths):
        q, k, v = (x[b : b + 1, :, n - length :] for x in (query, key, value))
        gqa = q.shape[1] != k.shape[1]
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        out[b, n - length :] = found[0].transpose(0, 1)
    return out.transpose(1, 2)


@cache
def flash_attend() -> Attend | None:
    """Through the package flash-attn; None where it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return through_flash(flash_attn_varlen_func)


@cache
def varlen_attend() -> Attend | None:
    """Through torch's own copy of FlashAttention; None before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return through_varlen(varlen_attn)


def through_flash(function: Callable) -> Attend:
    """function: takes the arguments of flash-attn's ``flash_attn_varlen_func``."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: RaggedMask, scale: float | None) -> Tensor:
        (q, k, v), ends, longest = _packed((query, key, value), mask)
        out = function(q, k, v, ends, ends, longest, longest, dropout_p=0.0, softmax_scale=scale, causal=True)
        return _unpacked(out, ends, query.shape[2])

    return attend


def through_varlen(function: Callable) -> Attend:
    """function: torch's ``varlen_attn``. 2.10 says ``is_causal`` and knows no scale; 2.11 has ``window_size`` and
    ``scale``; 2.12 has ``enable_gqa`` and asks for it where there are fewer key heads than query heads."""
    known = inspect.signature(function).parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: RaggedMask, scale: float | None) -> Tensor:
        options = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        if "scale" in known:
            options["scale"] = scale
        elif scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and "enable_gqa" in known:
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        (q, k, v), ends, longest = _packed((query, key, value), mask)
        return _unpacked(function(q, k, v, ends, ends, longest, longest, **options), ends, query.shape[2])

    return attend


def _packed(tensors: Sequence[Tensor], mask: RaggedMask) -> tuple[list[Tensor], Tensor, int]:
    """(B, H, n, d) -> (T, H, d) each; where samples begin and the last one ends, (B + 1,) int32; the longest."""
    found = [pack(x.transpose(1, 2), mask.valid, counts=mask.lengths) for x in tensors]
    return [packed for packed, _, _ in found], *found[0][1:]


def _unpacked(packed: Tensor, ends: Tensor, n: int) -> Tensor:
    """(T, H, d) -> (B, H, n, d), zeros for the padding on the left."""
    return unpack(packed, ends, length=n).transpose(1, 2)
