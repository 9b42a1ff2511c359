"""Each method as its publication describes it, without a thought for time or memory: what the policies must agree with.

Attention is a full map of all heads and rows, of queries and keys that are there already; greedy picks are read off a
matrix of all pairs; the rest goes token by token. Numbers are rounded where the policies round them, so that only what
is computed differs. The methods that take frames apart are in ``benchmarks.policies_literal_video``.
"""

from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

from benchmarks.policies_mmr import literal_mmr
from benchmarks.policies_scene import SEED, State, Stop
from vtprune.attention import Call, attention_inputs
from vtprune.blocks.cells import even_cells, share
from vtprune.blocks.scorer import Scorer, load_scorer
from vtprune.policies.base import Policy
from vtprune.signals import CLASS_ROWS, parse
from vtprune.tokens import Selection

LARGEST = 4 << 30
"""Bytes of attention maps, of which two are held at a time, above which a literal form is not run."""

Answer = Selection | Tensor
"""What a literal form says at a site: a selection, or the (K, D) vectors that the kept rows become."""


class TooLarge(RuntimeError):
    """Says what a literal form would hold in memory."""


def full_map(call: Call, tile: int = 0, causal: bool = True) -> Tensor:
    """(H, Q, K) float32: the attention of every head and row of one tile."""
    query, key = call.query[tile], call.key[tile]
    (heads, rows, _), columns = query.shape, key.shape[1]
    size = 2 * 4 * heads * rows * columns
    if size > LARGEST:
        raise TooLarge(
            f"attention maps of {heads} heads by {rows} by {columns} in float32, and their softmax, are "
            f"{size / 2**30:.1f} GiB"
        )
    key = key.repeat_interleave(heads // key.shape[0], 0)
    scores = (query.float() @ key.float().transpose(1, 2)).mul_(call.scaling)
    if causal:
        later = torch.ones(rows, columns, dtype=torch.bool, device=query.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    return scores.softmax(-1)


def best(score: Tensor, k: int) -> Tensor:
    """The rows of the k largest scores, ascending; the lowest row wins a tie."""
    listed = score.tolist()
    rows = sorted(range(len(listed)), key=lambda row: (-listed[row], row))[:k]
    return torch.tensor(sorted(rows), device=score.device)


def how_many(n: int, policy: Policy) -> int:
    """Of n tokens: as many as were asked for, or their share with half rounded to even, and at least one."""
    if getattr(policy, "n_keep", None) is not None:
        return min(n, policy.n_keep)
    return max(1, round(n * policy.keep_ratio))


# ------------------------------------------------------------------------------------------------------- controls


def random(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """a drawn order, sorted as a list"""
    n = stops[0].state.n
    digest = blake2b(f"{policy.seed} {SEED} {float(stops[0].site)}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return [Selection(best(torch.randperm(n, generator=generator), how_many(n, policy)))]


def uniform(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """cell by cell, the member nearest to the mean place"""
    tokens = stops[0].state.tokens
    grids, places = tokens.segments[0].grids, tokens.coords.cpu()
    sizes = [t * h * w for t, h, w in grids]
    keep, first = [], 0
    for grid, size, k in zip(grids, sizes, share(sizes, how_many(len(tokens), policy))):
        members: dict[int, list[int]] = {}
        for row, cell in enumerate(even_cells(*grid, k).tolist() if k else ()):
            members.setdefault(cell, []).append(first + row)
        for rows in members.values():
            place = places[rows, 1:].double()
            away = (place * len(rows) - place.sum(0)).square().sum(1).tolist()
            keep.append(rows[away.index(min(away))])
        first += size
    return [Selection(torch.tensor(sorted(keep), device=tokens.hidden.device))]


# ----------------------------------------------------------------------------------------------------- attention


def fastv(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """the layer's full attention map, all heads and rows"""
    state = stops[0].state
    score = full_map(state.call).mean(0)[-1, state.visual_rows]
    return [Selection(best(score, how_many(state.n, policy)))]


def tower_score(need: str, state: State) -> Tensor:
    """A signal of the tower, from full maps of every tile, head and row; (layers, heads, N) or (N,)."""
    scene, wanted = state.scene, parse(need)
    clip, layers = scene.shape.tower == "clip", []
    for _ in wanted.where:
        calls, tiles = scene.tower_calls, []
        for call in calls:
            for tile in range(len(call.query)):
                if wanted.name in CLASS_ROWS:
                    scores = (call.query[tile] @ call.key[tile].transpose(1, 2)) * call.scaling
                    if wanted.name == "cls_attention":
                        scores = scores.softmax(-1, dtype=torch.float32).to(call.query.dtype)
                    tiles.append(scores[:, 0, 1:])
                else:
                    tiles.append(full_map(call, tile, causal=False).mean((0, 1))[None, 1 if clip else 0 :])
        layers.append(torch.cat(tiles, 1))
    if scene.shape.tower == "qwen":
        layers = [scores.unflatten(1, (-1, 4)).mean(2) for scores in layers]
    return torch.stack(layers) if wanted.name in CLASS_ROWS else layers[0][0]


def vtc_cls(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """the tower's full attention maps, all heads and rows, of the layers that count"""
    (need,), state = policy.needs, stops[0].state
    score = tower_score(need, state)
    score = score.mean(1).sum(0) if score.dim() == 3 else score
    return [Selection(best(score, how_many(state.n, policy)))]


def idpruner(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """importance from full maps or all pairs, a matrix of all similarities, then pick by pick"""
    state = stops[0].state
    if policy.scorer is None:
        (need,) = policy.needs
        importance = tower_score(need, state)
        importance = importance.float().mean((0, 1)) if importance.dim() == 3 else importance
    else:
        importance = _all_pairs(_scorer(policy.scorer), state.tokens.hidden)
    k = how_many(state.n, policy)
    order = literal_mmr(state.tokens.hidden, importance, k, policy.trade_off, policy.parallel_k)
    return [Selection(order.sort().values)]


@lru_cache(1)
def _scorer(path: str) -> Scorer:
    """Read once: loading is not what is timed."""
    return load_scorer(path)


def _all_pairs(scorer: Scorer, x: Tensor) -> Tensor:
    """(N,) the mean over all tokens of query times key, pair by pair."""
    x = x.to(scorer.query)
    query = torch.nn.functional.linear(x, scorer.query, scorer.query_bias)
    key = torch.nn.functional.linear(x, scorer.key, scorer.key_bias)
    return (query @ key.T / scorer.query.shape[0] ** 0.5).mean(1)


def transprune(policy: Policy, stops: list[Stop]) -> list[Answer]:
    """all queries, keys and values of the layer ahead and its full attention map; transitions by the formula"""
    answers, seen = [], []
    for stop, stage in zip(stops, range(len(policy.layers))):
        state = stop.state
        for _ in stop.watched:
            seen.append(_transition(state.normed, state.outcome) + _transition(state.normed, state.outcome))
        total = sum(layer[state.visual_rows].float() for layer in seen)
        total = total / (total.sum() + 1e-8)
        scene, dtype = state.scene, state.tokens.hidden.dtype
        inputs = {"hidden_states": scene.norm(state.sequence), "position_embeddings": state.rotary}
        (call,) = attention_inputs(scene.attn, attention_mask=None, **inputs)
        after = state.text_rows[0, scene.shape.before :]
        rows = full_map(call).mean(0)[after][:, state.visual_rows]
        attention = rows.to(dtype).mean(0)
        score = total + attention / (attention.sum() + 1e-8)
        k = max(1, min(state.n, int(stops[0].state.n * policy.kept_at(stage))))
        keep = best(score, k) if k < state.n else torch.arange(state.n, device=score.device)
        answers.append(Selection(keep))
        # what was seen of the tokens that stay, among the text that stays
        before = scene.shape.before
        alive = torch.cat([torch.arange(before, device=keep.device), before + keep, after])
        seen = [layer[alive] for layer in seen]
    return answers


def _transition(x: Tensor, out: Tensor) -> Tensor:
    """(P,) change of every token by one module: how long its output is, times the share of its turn."""
    turn = (1 - torch.nn.functional.cosine_similarity(x[0], out[0], dim=-1)).exp()
    return out[0].norm(dim=-1) / x[0].norm(dim=-1) * (turn / turn.sum())
