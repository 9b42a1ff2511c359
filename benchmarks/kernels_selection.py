"""Attention and greedy selection of ``vtprune_kernels`` for ``benchmarks.kernels``, beside their literal forms."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels_cases import Case, noise, operations
from benchmarks.policies_literal import LARGEST, TooLarge

TEXT = 32
"""Queries whose attention rows are asked for."""
PICKS = 0.1
"""Of the tokens, that are picked."""
HEADS = {896: (14, 2, 64), 3584: (28, 4, 128), 4096: (32, 32, 128)}
"""Width -> query heads, key heads and their size, as in Qwen2.5-0.5B, Qwen2.5-7B and LLaMA-7B."""


def heads_of(d: int) -> tuple[int, int, int]:
    """Query heads, key heads and their size for a decoder of width ``d``."""
    return HEADS.get(d, (2, 1, max(1, d // 2)))


def probabilities(q: Tensor, k: Tensor, first: int) -> Tensor:
    """(H, R, N) causal attention of queries that stand at ``first`` and after, in float32 at least; checks its size."""
    precise = torch.promote_types(q.dtype, torch.float32)
    size = 2 * precise.itemsize * q.shape[1] * q.shape[2] * k.shape[2]
    if size > LARGEST:
        raise TooLarge(f"attention maps of {q.shape[1]} x {q.shape[2]} x {k.shape[2]}, twice: {size / 2**30:.1f} GiB")
    key = k[0].to(precise).repeat_interleave(q.shape[1] // k.shape[1], 0)
    scores = (q[0].to(precise) @ key.transpose(1, 2)) * q.shape[3] ** -0.5
    rows = torch.arange(first, first + q.shape[2], device=q.device)
    scores.masked_fill_(torch.arange(k.shape[2], device=q.device) > rows[:, None], -torch.inf)
    return scores.softmax(-1)


def _layer(n: int, rows: int, d: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the last ``rows`` tokens, keys of all, and the last key that each query sees."""
    heads, key_heads, size = heads_of(d)
    q = noise(1, heads, rows, size, dtype=dtype, device=device)
    k = noise(1, key_heads, n, size, dtype=dtype, device=device)
    return q, k, torch.arange(n - rows, n, device=device)[None]


def attention_rows(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    """What the last 32 tokens look at, mean over heads."""
    module, columns = operations("attention_rows"), operations("attention_columns")
    rows = min(TEXT, n)
    q, k, last = _layer(n, rows, d, dtype, device)
    every = noise(1, q.shape[1], n, q.shape[3], dtype=dtype, device=device)
    every[:, :, n - rows :] = q

    def seen(function: Callable) -> Callable:
        return lambda q, k, last: function(q, k, scale=q.shape[3] ** -0.5, visible=columns.Visible(last=last))

    def literal(q: Tensor, k: Tensor, last: Tensor) -> Tensor:
        return probabilities(every, k, 0).mean(0)[None, n - rows :]

    return Case(
        (q, k, last),
        seen(module.attention_rows),
        seen(module.attention_rows_reference),
        lambda q, k, last: probabilities(q, k, n - rows).mean(0)[None],
        f"q {tuple(q.shape)}, k {tuple(k.shape)}",
        q.nbytes + k.nbytes + 4 * rows * n,
        2 * q.shape[1] * rows * n * q.shape[3],
        literal=literal,
        about="the full map of all heads and queries",
        growth=2,
    )


def attention_columns(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    """How much attention each token gets from all that come after it, mean over heads."""
    module = operations("attention_columns")
    q, k, last = _layer(n, n, d, dtype, device)

    def seen(function: Callable) -> Callable:
        return lambda q, k, last: function(q, k, scale=q.shape[3] ** -0.5, visible=module.Visible(last=last))

    def plain(q: Tensor, k: Tensor, last: Tensor) -> Tensor:
        # as many rows at a time as fit beside each other
        step = max(1, (LARGEST // 16) // (16 * q.shape[1] * n))
        parts = [probabilities(q[:, :, i : i + step], k, i).sum((0, 1)) for i in range(0, n, step)]
        return torch.stack(parts).sum(0)[None] / (q.shape[1] * n)

    return Case(
        (q, k, last),
        seen(module.attention_columns),
        seen(module.attention_columns_reference),
        plain,
        f"q {tuple(q.shape)}, k {tuple(k.shape)}",
        q.nbytes + k.nbytes + 4 * n,
        # the products of the pairs that the mask allows, once for the sums and once for the shares
        2 * 2 * q.shape[1] * (n * (n + 1) // 2) * q.shape[3],
        literal=lambda q, k, last: probabilities(q, k, 0).mean((0, 1))[None],
        about="the full map of all heads and queries",
        growth=2,
    )


# ------------------------------------------------------------------------------------------------ greedy selection

Row = Callable[[int | Tensor], Tensor]
"""The (N,) cosines of one token to all."""


def greedy(rule: str) -> Callable[[int, int, torch.dtype, str], Case]:
    """The case of one rule: "mmr", "maxmin", "dpp" or "coverage"."""

    def make(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
        module, rules = operations("greedy_select"), operations("greedy_rules")
        x, k = noise(n, d, dtype=dtype, device=device), max(1, round(n * PICKS))
        importance = (2 * noise(n, dtype=torch.float32, device=device)).softmax(0)
        importance = (importance - importance.min()) / (importance.max() - importance.min() + 1e-6)
        made = {
            "mmr": lambda importance: rules.MMR(importance),
            "maxmin": lambda importance: rules.MaxMin(),
            "dpp": lambda importance: rules.DPP(0.5 + importance),
            "coverage": lambda importance: rules.Coverage(),
        }[rule]
        picks = {"mmr": mmr_picks, "maxmin": maxmin_picks, "dpp": dpp_picks, "coverage": coverage_picks}[rule]
        # two exact ways: the matrix of all pairs, or a look at all features for each pick
        pairs, looks = x.nbytes + 4 * n * n, (k + 1) * x.nbytes
        return Case(
            (x, importance),
            lambda x, importance: module.greedy_select(x, k, made(importance)),
            lambda x, importance: module.greedy_select_reference(x, k, made(importance)),
            lambda x, importance: picks(unit(x), importance, k, one_by_one),
            f"{tuple(x.shape)}, {k} picks",
            min(pairs, looks),
            2 * n * n * d if pairs < looks else 2 * n * k * d,
            literal=lambda x, importance: picks(unit(x), importance, k, AllPairs),
            about="the matrix of all pairs, then pick by pick",
            exact="picks",
            growth=2,
        )

    return make


def unit(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


def one_by_one(x: Tensor) -> Row:
    """A product with all unit rows whenever a row is asked for."""
    return lambda i: x @ x[i]


class AllPairs:
    """Rows of the matrix of all pairs; checks its size."""

    def __init__(self, x: Tensor):
        if (size := 2 * x.itemsize * len(x) ** 2) > 8 * LARGEST:
            raise TooLarge(f"all pairs of {len(x)} tokens, and as much again to work on: {size / 2**30:.0f} GiB")
        self.matrix = x @ x.T

    def __call__(self, i: Tensor) -> Tensor:
        return self.matrix[i]


def mmr_picks(x: Tensor, importance: Tensor, k: int, rows: Callable[[Tensor], Row], trade_off: float = 0.5) -> Tensor:
    """Maximal marginal relevance; the host asks for nothing."""
    row, order = rows(x), torch.zeros(k, dtype=torch.int64, device=x.device)
    relevant = trade_off * importance.to(x.dtype)
    score, nearest = relevant, torch.full_like(relevant, -torch.inf)
    taken = torch.zeros_like(relevant)
    for t in range(k):
        order[t] = pick = (score + taken).argmax()
        taken[pick] = -torch.inf
        nearest = torch.maximum(nearest, row(pick))
        score = relevant - (1 - trade_off) * nearest
    return order


def maxmin_picks(x: Tensor, importance: Tensor, k: int, rows: Callable[[Tensor], Row]) -> Tensor:
    """The token that is farthest from its nearest pick; the first is farthest from its nearest other."""
    row, order = rows(x), torch.zeros(k, dtype=torch.int64, device=x.device)
    nearest = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), 1024):
        block = torch.arange(start, min(len(x), start + 1024), device=x.device)
        # whoever has the matrix of all pairs does not make it again
        products = row.matrix[block] if isinstance(row, AllPairs) else x[block] @ x.T
        others = products.scatter(1, block[:, None], -torch.inf)
        nearest[block] = others.amax(1)
    taken = torch.zeros_like(nearest)
    for t in range(k):
        order[t] = pick = (nearest + taken).argmin()
        taken[pick] = torch.inf
        nearest = torch.maximum(nearest, row(pick)) if t else row(pick)
    return order


def dpp_picks(x: Tensor, importance: Tensor, k: int, rows: Callable[[Tensor], Row]) -> Tensor:
    """The largest residual of the weighted kernel, by its Cholesky factor row by row."""
    row, order = rows(x), torch.zeros(k, dtype=torch.int64, device=x.device)
    relevance = 0.5 + importance.to(x.dtype)
    left = (x * x).sum(1) * relevance**2
    factor, taken = torch.zeros(k, len(x), dtype=x.dtype, device=x.device), torch.zeros_like(left)
    for t in range(k):
        order[t] = pick = (left + taken).argmax()
        kernel = row(pick) * relevance * relevance[pick]
        factor[t] = (kernel - factor[:t, pick] @ factor[:t]) / left[pick].clamp(min=1e-12).sqrt()
        left = left - factor[t] ** 2
        taken[pick] = -torch.inf
    return order


def coverage_picks(x: Tensor, importance: Tensor, k: int, rows: Callable[[Tensor], Row]) -> Tensor:
    """The token that adds most to what is covered, all gains anew for every pick; it takes all pairs in any case."""
    row, order = AllPairs(x), torch.zeros(k, dtype=torch.int64, device=x.device)
    similarity = row(slice(None))
    cover = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    taken = torch.zeros_like(cover)
    for t in range(k):
        order[t] = pick = ((similarity - cover[:, None]).clamp_(min=0).sum(0) + taken).argmax()
        torch.maximum(cover, similarity[pick], out=cover)
        taken[pick] = -torch.inf
    return order
