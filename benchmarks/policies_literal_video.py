"""FrameFusion and QuoTA as they were published, frame by frame and place by place, for ``benchmarks.policies``."""

import math

import torch
from torch import Tensor

from benchmarks.policies_literal import Answer, best, how_many
from benchmarks.policies_scene import State, Stop
from vtprune.blocks.cells import share
from vtprune.policies.base import Policy
from vtprune.tokens import Selection


def framefusion(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """place by place over the frames, one similarity at a time"""
    sparsity, merging, pruning, answers = [], True, True, []
    for stop in stops:
        state, n = stop.state, stop.state.n
        to_drop = _required(sparsity, policy.keep_ratio, policy.layers) if merging or pruning else None
        if to_drop is None:
            # the budget is spent, or nothing is left to be done
            merging = pruning = False
            answers.append(Selection(torch.arange(n, device=state.tokens.rows.device)))
        elif merging:
            chains = _chains(state)
            similarity = {b: _cosine(state, a, b) for chain in chains for a, b in zip(chain, chain[1:])}
            joins = [row for row in sorted(similarity) if similarity[row] >= policy.similarity]
            if len(joins) / n < to_drop:
                sparsity.append(len(joins) / n)
                merging = len(joins) / n >= policy.stop_below
            else:
                joins = sorted(joins, key=lambda row: (-similarity[row], row))[: int(to_drop * n)]
                merging = pruning = False
            answers.append(_merged(state, chains, set(joins)))
        else:
            pruning = False
            k = max(1, round(n * (1 - to_drop)))
            answers.append(Selection(best(_last_rows(state, policy.queries), k)))
    return answers


def _required(sparsity: list[float], cost: float, layers: int) -> float | None:
    share_left, used = 1.0, 0.0
    for dropped in sparsity:
        share_left *= 1 - dropped
        used += share_left
    rest = layers * cost - used
    if rest < 0:
        return None
    if len(sparsity) >= layers or not share_left:
        return 0.0
    wanted = rest / ((layers - len(sparsity)) * share_left)
    return 0.0 if wanted > 1 else 1 - wanted


def _chains(state: State) -> list[list[int]]:
    """The rows of every place, in the order of time."""
    chains: dict[tuple, list[int]] = {}
    for row, (view, _, y, x) in enumerate(state.tokens.coords.tolist()):
        chains.setdefault((view, y, x), []).append(row)
    return list(chains.values())


def _cosine(state: State, a: int, b: int) -> float:
    x, y = state.tokens.hidden[a], state.tokens.hidden[b]
    return float((x * y).sum() / (x.norm() * y.norm()))


def _merged(state: State, chains: list[list[int]], joins: set[int]) -> Selection:
    """Runs of joining rows go into the row in front of them."""
    anchor = list(range(state.n))
    for chain in chains:
        for a, b in zip(chain, chain[1:]):
            if b in joins:
                anchor[b] = anchor[a]
    keep = [row for row in range(state.n) if anchor[row] == row]
    place = {row: i for i, row in enumerate(keep)}
    device = state.tokens.rows.device
    merge = torch.tensor([place[row] for row in anchor], device=device) if joins else None
    return Selection(torch.tensor(keep, device=device), merge)


def _last_rows(state: State, queries: int) -> Tensor:
    """(N,) the mean attention of the last queries, over all heads."""
    call = state.call
    key = call.key[0].repeat_interleave(call.query.shape[1] // call.key.shape[1], 0)
    scores = (call.query[0, :, -queries:].float() @ key.float().transpose(1, 2)) * call.scaling
    later = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., -queries:].masked_fill_(later, -torch.inf)
    return scores.softmax(-1).mean((0, 1))[state.visual_rows]


def quota(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """frame by frame, each resized by a call of its own"""
    tokens = stops[0].state.tokens
    views = [tokens.hidden.split([t * h * w for t, h, w in tokens.segments[0].grids])]
    frames = [
        [(x, h, w) for x in view.split(h * w)]
        for view, (_, h, w) in zip(views[0], tokens.segments[0].grids, strict=True)
    ]
    total = how_many(len(tokens), policy)
    if policy.frame_scores is None:
        # one image: its views share the budget by size
        parts = [view[0] for view in frames]
        budgets = share([len(x) for x, _, _ in parts], total)
    else:
        (parts,) = frames
        weights = _capped(policy.frame_scores.tolist(), [len(x) for x, _, _ in parts], total, policy.exponent)
        budgets = [min(int(total * weight), len(x)) for weight, (x, _, _) in zip(weights, parts)]
    return [torch.cat([_resized(*part, n) for part, n in zip(parts, budgets) if n])]


def _capped(scores: list[float], sizes: list[int], total: int, exponent: float) -> list[float]:
    """Shares of the powers of the scores, none above what its frame can hold; what is cut off goes to later frames."""
    raw = [(100 * score) ** exponent for score in scores]
    weights, most = [value / sum(raw) for value in raw], [size / total for size in sizes]
    clipped = [min(weight, cap) for weight, cap in zip(weights, most)]
    excess, whole = sum(weights) - sum(clipped), sum(clipped)
    for i, cap in enumerate(most):
        if clipped[i] < cap:
            lifted = clipped[i] + clipped[i] / whole * excess
            excess += max(0.0, lifted - cap)
            clipped[i] = min(lifted, cap)
    return clipped


def _resized(x: Tensor, height: int, width: int, n: int) -> Tensor:
    """(H * W, D) -> (h * w, D) with h * w <= n."""
    h = w = math.isqrt(n)
    if h * w < n and (h + 1) * w <= n:
        h += 1
    frame = x.float().view(1, height, width, -1).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(frame, size=(h, w), mode="bilinear", align_corners=False)
    return made[0].flatten(1).T.to(x.dtype)
