"""Checks a policy's answer before anything is moved, so that a wrong one names itself and loses nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.tokens import Selection, VisualTokens, site_name


def check_selections(selections: Sequence[Selection | None], offered: Sequence[VisualTokens | None], policy: object):
    """Checks the answers for a whole batch, None where a sample had nothing to offer.

    Returns their ``keep`` on the CPU, (K,) each, after one transfer. Raises TypeError or ValueError that names the
    policy, the site and what is wrong.
    """
    pairs = [(s, t) for s, t in zip(selections, offered, strict=True) if t is not None]
    for selection, tokens in pairs:
        _check_form(selection, tokens, _who(policy, tokens))
    moved = iter(torch.cat([s.keep for s, _ in pairs]).cpu().split([len(s.keep) for s, _ in pairs]) if pairs else ())
    rows = [torch.zeros(0, dtype=torch.int64) if tokens is None else next(moved) for tokens in offered]
    for selection, tokens, keep in zip(selections, offered, rows, strict=True):
        if tokens is not None:
            who = _who(policy, tokens)
            _check_rows(keep, len(tokens), who)
            if selection.merge is not None:
                (_check_plan if selection.merge.is_sparse else _check_assignment)(selection, len(tokens), who)
            if selection.weight is not None:
                _check_weight(selection, tokens, who)
            if selection.values is not None:
                _check_values(selection, tokens, who)
            if selection.stands_for is not None:
                _check_positive(selection.stands_for, len(keep), who, "stands_for")
    return rows


def _who(policy: object, tokens: VisualTokens) -> str:
    return f"{type(policy).__name__}.select at {site_name(tokens.site)}"


def _check_form(selection: Selection, tokens: VisualTokens, who: str) -> None:
    """Types, shapes and devices: what can be seen without waiting for a device."""
    if not isinstance(selection, Selection):
        raise TypeError(f"{who} must return a vtprune.Selection; got {type(selection).__name__}")
    keep = selection.keep
    if not isinstance(keep, Tensor) or keep.dtype != torch.int64 or keep.dim() != 1:
        got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise TypeError(f"{who}: keep must be an int64 tensor of shape (K,); got {got}")
    _check_device(keep, tokens, who, "keep")
    if not len(keep):
        raise ValueError(f"{who}: keep is empty; at least one of the {len(tokens)} visual tokens must stay")
    for name in ("merge", "weight", "values", "stands_for"):
        tensor = getattr(selection, name)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{who}: {name} must be a tensor or None; got {type(tensor).__name__}")
        if tensor is not None:
            _check_device(tensor, tokens, who, name)


def _check_rows(rows: Tensor, n: int, who: str) -> None:
    if int(rows.min()) < 0 or int(rows.max()) >= n:
        raise ValueError(f"{who}: keep must lie in [0, {n}); got rows from {int(rows.min())} to {int(rows.max())}")
    falls = rows.diff() <= 0
    if bool(falls.any()):
        at = int(falls.nonzero()[0])
        what = "repeated" if rows[at] == rows[at + 1] else "unsorted"
        raise ValueError(
            f"{who}: keep must be strictly ascending; it is {what} at {at}: {int(rows[at])}, {int(rows[at + 1])}. "
            "Return keep.unique()"
        )


def _check_device(tensor: Tensor, tokens: VisualTokens, who: str, name: str) -> None:
    if tensor.device != tokens.hidden.device:
        raise ValueError(
            f"{who}: {name} is on {tensor.device}, the tokens are on {tokens.hidden.device}; "
            f"return {name}.to(tokens.hidden.device)"
        )


def _check_assignment(selection: Selection, n: int, who: str) -> None:
    merge, k = selection.merge, len(selection.keep)
    if merge.dtype != torch.int64 or merge.shape != (n,):
        raise ValueError(
            f"{who}: merge must be int64 of shape ({n},) or a sparse ({k}, {n}) matrix; "
            f"got {merge.dtype} {tuple(merge.shape)}"
        )
    low, high = int(merge.min()), int(merge.max())
    if low < -1 or high >= k:
        raise ValueError(f"{who}: merge must lie in [-1, {k}); got values from {low} to {high}")
    if not torch.equal(merge[selection.keep], torch.arange(k, device=merge.device)):
        raise ValueError(f"{who}: every kept row must be merged into itself: merge[keep] must be 0, 1, ..., {k - 1}")


def _check_plan(selection: Selection, n: int, who: str) -> None:
    plan, k = selection.merge, len(selection.keep)
    if plan.shape != (k, n) or not plan.is_floating_point():
        raise ValueError(
            f"{who}: a merge matrix must be float of shape ({k}, {n}); got {plan.dtype} {tuple(plan.shape)}"
        )
    if selection.weight is not None:
        raise ValueError(f"{who}: a merge matrix holds its weights itself; got weight too")
    sums = torch.sparse.sum(plan.double(), dim=1).to_dense()
    off = (sums - 1).abs()
    # not (x <= 1e-3), so that a NaN is caught too
    wrong = ~(off <= 1e-3)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{who}: the rows of a merge matrix must sum to 1; row {row} sums to {float(sums[row])}")


def _check_values(selection: Selection, tokens: VisualTokens, who: str) -> None:
    values, shape = selection.values, (len(selection.keep), tokens.hidden.shape[1])
    if selection.merge is not None:
        raise ValueError(f"{who}: values replace the kept rows, merge averages them; got both, return one of them")
    if values.shape != shape or not values.is_floating_point():
        raise ValueError(f"{who}: values must be float of shape {shape}; got {values.dtype} {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{who}: values must be finite; got {int((~values.isfinite()).sum())} that are not")


def _check_weight(selection: Selection, tokens: VisualTokens, who: str) -> None:
    if selection.merge is None:
        raise ValueError(f"{who}: weight goes with merge; got weight alone")
    _check_positive(selection.weight, len(tokens), who, "weight")


def _check_positive(numbers: Tensor, n: int, who: str, name: str) -> None:
    if numbers.shape != (n,) or not numbers.is_floating_point():
        raise ValueError(f"{who}: {name} must be float of shape ({n},); got {numbers.dtype} {tuple(numbers.shape)}")
    if not bool(((numbers > 0) & numbers.isfinite()).all()):
        raise ValueError(
            f"{who}: every {name} must be finite and above 0; got {float(numbers.min())} to {float(numbers.max())}"
        )
