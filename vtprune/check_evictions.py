"""Whether a policy's answer about the cache can be carried out; otherwise what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vtprune import compat
from vtprune.cached import CachedSlots, Eviction, Evictions


def check_evictions(answer: Any, layers: Sequence[CachedSlots], heads: Sequence[int], policy: Any) -> Evictions:
    """The answer itself. heads: of each layer, how many key heads its cache has.

    Raises TypeError for anything but ``Evictions``, ValueError for rows that cannot be kept.
    """
    name = type(policy).__name__
    if not isinstance(answer, Evictions):
        raise TypeError(f"{name}.evict must return vtprune.Evictions; got {type(answer).__name__}")
    if len(answer.layers) != len(layers):
        raise ValueError(
            f"{name}.evict answers for {len(answer.layers)} layers, and the cache has {len(layers)} to evict from: "
            "give one Eviction for each of prompt.layers"
        )
    for layer, one, n_heads in zip(layers, answer.layers, heads, strict=True):
        _check(f"{name}.evict, layer {layer.index}", one, len(layer), n_heads)
    return answer


def _check(who: str, one: Any, n: int, heads: int) -> None:
    keep = getattr(one, "keep", None)
    if not isinstance(one, Eviction) or not isinstance(keep, Tensor):
        raise TypeError(f"{who}: an Eviction(keep=...) with a tensor is wanted; got {one!r}")
    if keep.is_floating_point() or keep.dim() not in (1, 2) or (keep.dim() == 2 and len(keep) != heads):
        raise ValueError(
            f"{who}: keep is (K,) int64, or ({heads}, K) for the {heads} key heads of the cache; got "
            f"{tuple(keep.shape)} {keep.dtype}"
        )
    if n and not keep.shape[-1]:
        raise ValueError(f"{who}: at least one of {n} visual tokens stays; got none")
    if keep.numel() and (int(keep.min()) < 0 or int(keep.max()) >= n or bool((keep.diff(dim=-1) <= 0).any())):
        raise ValueError(f"{who}: keep holds strictly ascending numbers from 0 to {n - 1}; got {keep.tolist()}")
    for what in ("keys", "values"):
        new = getattr(one, what)
        if new is not None and tuple(new.shape[:2]) != (heads, keep.shape[-1]):
            raise ValueError(f"{who}: {what} are ({heads}, {keep.shape[-1]}, d); got {tuple(new.shape)}")


def check_merges(attn: nn.Module) -> None:
    """Raises NotImplementedError for a layer whose stored keys and values cannot be averaged."""
    if compat.stores_latents(attn):
        raise NotImplementedError(
            f"{type(attn).__name__} stores latents, and rotated parts of keys in the place of values, which have no "
            "mean. Choose a policy that evicts and does not merge, such as elastic_cache with merge='none'"
        )
