"""Checks a policy's answer before anything is moved, so that a wrong one names itself and loses nothing."""

import torch
from torch import Tensor

from vtprune.tokens import Selection, VisualTokens, site_name


def check_selection(selection: Selection, tokens: VisualTokens, policy: object) -> Selection:
    """The selection as it is. Raises TypeError or ValueError that names the policy, the site and what is wrong."""
    who = f"{type(policy).__name__}.select at {site_name(tokens.site)}"
    if not isinstance(selection, Selection):
        raise TypeError(f"{who} must return a vtprune.Selection; got {type(selection).__name__}")
    _check_keep(selection.keep, tokens, who)
    if selection.merge is not None:
        if not isinstance(selection.merge, Tensor):
            raise TypeError(f"{who}: merge must be a tensor or None; got {type(selection.merge).__name__}")
        _check_device(selection.merge, tokens, who, "merge")
        (_check_plan if selection.merge.is_sparse else _check_assignment)(selection, len(tokens), who)
    if selection.weight is not None:
        _check_weight(selection, tokens, who)
    return selection


def _check_keep(keep: Tensor, tokens: VisualTokens, who: str) -> None:
    n = len(tokens)
    if not isinstance(keep, Tensor) or keep.dtype != torch.int64 or keep.dim() != 1:
        got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise TypeError(f"{who}: keep must be an int64 tensor of shape (K,); got {got}")
    _check_device(keep, tokens, who, "keep")
    if not len(keep):
        raise ValueError(f"{who}: keep is empty; at least one of the {n} visual tokens must stay")
    rows = keep.cpu()
    if int(rows.min()) < 0 or int(rows.max()) >= n:
        raise ValueError(f"{who}: keep must lie in [0, {n}); got rows from {int(rows.min())} to {int(rows.max())}")
    if bool((rows.diff() <= 0).any()):
        at = int((rows.diff() <= 0).nonzero()[0])
        what = "repeated" if rows[at] == rows[at + 1] else "unsorted"
        raise ValueError(
            f"{who}: keep must be strictly ascending; it is {what} at {at}: {int(rows[at])}, {int(rows[at + 1])}. "
            "Return keep.unique()"
        )


def _check_device(tensor: Tensor, tokens: VisualTokens, who: str, name: str) -> None:
    if tensor.device != tokens.hidden.device:
        raise ValueError(
            f"{who}: {name} is on {tensor.device}, the tokens are on {tokens.hidden.device}; return {name}.to(tokens.hidden.device)"
        )


def _check_assignment(selection: Selection, n: int, who: str) -> None:
    merge, k = selection.merge, len(selection.keep)
    if merge.dtype != torch.int64 or merge.shape != (n,):
        raise ValueError(f"{who}: merge must be int64 of shape ({n},) or a sparse ({k}, {n}) matrix; got {merge.dtype} {tuple(merge.shape)}")
    low, high = int(merge.min()), int(merge.max())
    if low < -1 or high >= k:
        raise ValueError(f"{who}: merge must lie in [-1, {k}); got values from {low} to {high}")
    if not torch.equal(merge[selection.keep], torch.arange(k, device=merge.device)):
        raise ValueError(f"{who}: every kept row must be merged into itself: merge[keep] must be 0, 1, ..., {k - 1}")


def _check_plan(selection: Selection, n: int, who: str) -> None:
    plan, k = selection.merge, len(selection.keep)
    if plan.shape != (k, n) or not plan.is_floating_point():
        raise ValueError(f"{who}: a merge matrix must be float of shape ({k}, {n}); got {plan.dtype} {tuple(plan.shape)}")
    if selection.weight is not None:
        raise ValueError(f"{who}: a merge matrix holds its weights itself; got weight too")
    sums = torch.sparse.sum(plan.double(), dim=1).to_dense()
    off = (sums - 1).abs()
    # not (x <= 1e-3), so that a NaN is caught too
    wrong = ~(off <= 1e-3)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{who}: the rows of a merge matrix must sum to 1; row {row} sums to {float(sums[row])}")


def _check_weight(selection: Selection, tokens: VisualTokens, who: str) -> None:
    weight, n = selection.weight, len(tokens)
    if selection.merge is None:
        raise ValueError(f"{who}: weight goes with merge; got weight alone")
    _check_device(weight, tokens, who, "weight")
    if weight.shape != (n,) or not weight.is_floating_point():
        raise ValueError(f"{who}: weight must be float of shape ({n},); got {weight.dtype} {tuple(weight.shape)}")
    if not bool(((weight > 0) & weight.isfinite()).all()):
        raise ValueError(f"{who}: every weight must be finite and above 0; got {float(weight.min())} to {float(weight.max())}")
