"""What a selection does to tensors: rows gathered by sample, merged rows made, ragged batches padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.tokens import Selection
from vtprune_kernels.gather_site import gather_site
from vtprune_kernels.merge import merge_tokens


def gather_rows(x: Tensor, index: Tensor, dim: int = -2) -> Tensor:
    """Entries of a tensor whose dimension ``dim`` is the sequence and whose dimension before that is the batch, or 1.

    x: (..., B or 1, P, ...), index: (B, K) int64 -> (..., B, K, ...).
    """
    return gather_site([x], index, dims=dim)[0]


@dataclass(frozen=True)
class Merge:
    """One sample's merging in a step: ``selection`` over ``rows`` (N,), results at ``slots`` (K,) of the new row."""

    rows: Tensor
    selection: Selection
    slots: Tensor


@dataclass(frozen=True)
class Step:
    """A pruning of a whole batch: ``order`` (B, K) rows that live on, ``valid`` (B, K) or None, merges by sample.

    lengths: how many rows of each sample live on.

    The pads that unequal counts need stand on the left and repeat the first kept row, so that they hold finite
    numbers and attend to something.
    """

    order: Tensor
    valid: Tensor | None
    lengths: tuple[int, ...]
    merges: tuple[tuple[int, Merge], ...] = ()

    def apply(self, hidden: Tensor) -> Tensor:
        """(B, P, D) -> (B, K, D), or (N, B, P, D) -> (N, B, K, D), where every plane is merged by the same weights."""
        out = gather_rows(hidden, self.order.to(hidden.device))
        for b, merge in self.merges:
            rows, slots = merge.rows.to(hidden.device), merge.slots.to(hidden.device)
            if hidden.dim() == 3:
                out[b, slots] = merge_rows(hidden[b, rows], merge.selection)
                continue
            if merge.selection.values is not None:
                raise NotImplementedError(
                    f"this policy makes new vectors, and here a token is {len(hidden)} vectors of which policies see "
                    "one. Choose a policy that drops tokens or merges them by weights (Selection.merge)"
                )
            for new, old in zip(out, hidden, strict=True):
                new[b, slots] = merge_rows(old[b, rows], merge.selection)
        return out

    def follow(self, columns: Tensor) -> Tensor:
        """Bookkeeping (B, P) of the old rows -> (B, K) of the new."""
        return columns.gather(1, self.order)

    def stand_for(self, before: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """For how many tokens rows stand in attention, (B, P) of the old rows -> (B, K) of the new; None: all for one.

        dtype: of the answer, in at least fp32.
        """
        said = [(b, m.slots, m.selection.stands_for) for b, m in self.merges if m.selection.stands_for is not None]
        if before is None and all(bool((numbers == 1).all()) for _, _, numbers in said):
            return None
        wide, device = torch.promote_types(dtype, torch.float32), self.order.device
        out = torch.ones(self.order.shape, dtype=wide, device=device)
        out = out if before is None else self.follow(before.to(device))
        for b, slots, numbers in said:
            out[b, slots.to(device)] = numbers.to(device, wide)
        return out


def merge_rows(x: Tensor, selection: Selection) -> Tensor:
    """(N, D) -> (K, D) in x's dtype, computed in at least fp32."""
    if selection.values is not None:
        return selection.values.to(x.device, x.dtype)
    if selection.merge is None:
        return x[selection.keep]
    if selection.merge.is_sparse:
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.sparse.mm(selection.merge.to(x.device, wide), x.to(wide)).to(x.dtype)
    weight = None if selection.weight is None else selection.weight.to(x.device)
    return merge_tokens(x, selection.merge.to(x.device), weight, len(selection.keep))


def build_step(kept: Sequence[Tensor], merges: Sequence[Merge | None], device: torch.device) -> Step:
    """Pads ragged rows on the left. kept: for each sample the ascending rows (n_b,) that live on, on the CPU."""
    longest = max(len(rows) for rows in kept)
    pads = [longest - len(rows) for rows in kept]
    order = torch.stack([torch.cat([rows[:1].expand(pad), rows]) for rows, pad in zip(kept, pads, strict=True)])
    valid = None
    if any(pads):
        valid = (torch.arange(longest)[None] >= torch.tensor(pads)[:, None]).to(device)
    placed = tuple(
        (b, Merge(merge.rows, merge.selection, merge.slots + pad))
        for b, (merge, pad) in enumerate(zip(merges, pads, strict=True))
        if merge is not None
    )
    return Step(order.to(device), valid, tuple(map(len, kept)), placed)


def scatter_rows(hidden: Tensor, columns: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """(..., B, K, D) back to the unpruned (..., B, length, D); zeros where tokens were dropped."""
    *lead, _, width = hidden.shape
    # one column more than needed catches the pads
    spare = 0 if valid is None else 1
    full = hidden.new_zeros(*lead, length + spare, width)
    where = columns if valid is None else columns.masked_fill(~valid, length)
    full.scatter_(-2, where[..., None].expand_as(hidden), hidden)
    return full[..., :length, :] if spare else full
