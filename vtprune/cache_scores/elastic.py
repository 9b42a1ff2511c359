"""Elastic Cache: entries that go are averaged into the nearest of those that competed with them and stay.

Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024,
arXiv:2407.18121. Differs from the authors' code: anchors are those of the largest scores, as the paper has it, and keys
stay as they are by default, since the mean of keys that were rotated to different places is no key of any place.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from vtprune_kernels.merge import merge_tokens

Merging = Literal["value_only", "nearest_anchor"]


def nearest_anchor(keep: Tensor, n: int, candidates: Tensor | None = None, position: Tensor | None = None) -> Tensor:
    """(N,) int64 in [0, K): which kept entry each entry ends in; -1 for one that goes where no anchor stays.

    keep:       (K,) of n entries, ascending, see ``keep_best``.
    candidates: (N,) bool, who competed: kept ones are anchors, the others take nothing in; None: all.
    position:   (N,) places of the entries in the prompt, ascending, if they are not 0, 1, 2, ...
    Nearest by place; the earlier anchor on a tie.
    """
    device = keep.device
    position = torch.arange(n, device=device) if position is None else position
    owner = torch.full((n,), -1, device=device)
    slots = torch.arange(len(keep), device=device)
    anchor = slots if candidates is None else candidates[keep].nonzero().flatten()
    if len(anchor):
        place = position[keep[anchor]].contiguous()
        after = torch.searchsorted(place, position.contiguous()).clamp(max=len(anchor) - 1)
        before = (after - 1).clamp(min=0)
        near = torch.where((position - place[before]).abs() <= (place[after] - position).abs(), before, after)
        owner = anchor[near]
    owner[keep] = slots
    return owner


def merge_anchors(
    keys: Tensor, values: Tensor, keep: Tensor, owner: Tensor, how: Merging = "value_only"
) -> tuple[Tensor, Tensor]:
    """(H_kv, K, d) keys and (H_kv, K, d_v) values that stay: each the plain mean of what ended in it.

    keys:   (H_kv, N, d), values: (H_kv, N, d_v); averaged in float32, returned in their dtypes.
    keep:   (K,) ascending. owner: (N,), see ``nearest_anchor``; -1 drops an entry.
    how:    "value_only": keys of ``keep`` as they are. "nearest_anchor": keys are averaged as values are.
    Raises ValueError for another ``how``.
    """
    if how not in get_args(Merging):
        raise ValueError(f"how is one of {', '.join(map(repr, get_args(Merging)))}; got {how!r}")

    def averaged(x: Tensor) -> Tensor:
        rows = merge_tokens(x.transpose(0, 1).flatten(1), owner, None, len(keep))
        return rows.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1).contiguous()

    return (averaged(keys) if how == "nearest_anchor" else keys[:, keep]), averaged(values)
