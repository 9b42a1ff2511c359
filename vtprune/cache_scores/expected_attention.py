"""Expected Attention: how much attention later queries will pay, if they are distributed as those of the prompt.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
2025, arXiv:2510.00636.
"""

import torch
from torch import Tensor

from vtprune.cache_scores.attention_scores import protected

N_FUTURE = 512
N_SINK = 4


def mean_rotation(
    inv_freq: Tensor,
    start: int,
    n_future: int = N_FUTURE,
    *,
    head_dim: int | None = None,
    scaling: float = 1.0,
    interleaved: bool = False,
) -> Tensor:
    """(d, d) float32: the mean of the rotations to the places ``start`` to ``start + n_future - 1``.

    inv_freq:    (r / 2,) angles of one step. start: the coordinate of the next text token; with several axes it is one
                 more than the largest of the prompt, and all axes of later text agree.
    head_dim:    d, where only the first r of a head are rotated; r if None.
    scaling:     factor on cosines and sines, as some rotations for long contexts have.
    interleaved: whether pairs are neighbours (0, 1), (2, 3)...; otherwise entry i goes with entry i + r / 2.
    """
    place = torch.arange(start, start + n_future, dtype=torch.float64, device=inv_freq.device)
    angle = place[:, None] * inv_freq.double()
    return rotation_matrix(
        angle.cos().mean(0) * scaling, angle.sin().mean(0) * scaling, head_dim=head_dim, interleaved=interleaved
    ).float()


def rotation_matrix(cosine: Tensor, sine: Tensor, *, head_dim: int | None = None, interleaved: bool = False) -> Tensor:
    """(d, d): what turns each pair by these (r / 2,) cosines and sines, or their means. As of ``mean_rotation``."""
    half = len(cosine)
    d = 2 * half if head_dim is None else head_dim
    if d < 2 * half:
        raise ValueError(f"{half} frequencies rotate {2 * half} entries of a head, which has {d}")
    index = torch.arange(half, device=cosine.device)
    one, other = (2 * index, 2 * index + 1) if interleaved else (index, index + half)
    matrix = torch.eye(d, dtype=cosine.dtype, device=cosine.device)
    matrix[one, one], matrix[other, other] = cosine, cosine
    matrix[one, other], matrix[other, one] = -sine, sine
    return matrix


@torch.no_grad()
def expected_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    rotation: Tensor | None = None,
    *,
    scale: float | None = None,
    n_sink: int = N_SINK,
    skip: int | None = None,
    covariance: bool = True,
    epsilon: float = 0.0,
) -> Tensor:
    """(H_kv, N) float32: (mean over a group's heads of softmax_j(log E[exp(scale q . k_j)]) + epsilon) * |v_j|.

    The queries are taken for Gaussian, of the mean and covariance of those given, rotated.

    queries:    (H, M, d) of the prompt after norms, NOT rotated, the first ``skip`` of which are left out.
    keys:       (H_kv, N, d) rotated. values: (H_kv, N, d_v), or None for no factor |v|. No padding among them.
    rotation:   (d, d), see ``mean_rotation``; None where the queries are means of rotated ones already.
    scale:      on q . k; d ** -0.5 if None.
    n_sink:     how many first keys are left out of the softmax and get the largest score + 1.
    skip:       ``n_sink`` if None; fewer where keys of an earlier turn stand before the queries.
    covariance: False: only the mean query counts.
    Raises ValueError for shapes that do not fit, or where no query is left.
    """
    (heads, m, d), (groups, n, _) = queries.shape, keys.shape
    rotation = torch.eye(d, device=keys.device) if rotation is None else rotation
    if heads % groups or keys.shape[2] != d or tuple(rotation.shape) != (d, d):
        shapes = ", ".join(str(tuple(t.shape)) for t in (queries, keys, rotation))
        raise ValueError(f"queries are (H, M, d), keys (H_kv, N, d), H_kv divides H, rotation (d, d); got {shapes}")
    skip = n_sink if skip is None else skip
    if m <= skip:
        raise ValueError(f"the first {skip} queries are left out, and there are only {m}: lower n_sink")
    scale, share, turn = d**-0.5 if scale is None else scale, heads // groups, rotation.float()
    late, out = keys[:, n_sink:].float(), torch.zeros(groups, max(0, n - n_sink), device=keys.device)
    # head by head: a prompt's keys times a covariance are as large as the keys
    for head in range(heads):
        query, key = queries[head, skip:].float(), late[head // share]
        mean = query.mean(0)
        logit = scale * (key @ (turn @ mean))
        if covariance:
            spread = turn @ ((query - mean).T @ (query - mean) / len(query)) @ turn.T
            logit += scale**2 / 2 * ((key @ spread) * key).sum(-1)
        out[head // share] += logit.softmax(0) / share
    out += epsilon
    if values is not None:
        out *= values[:, n_sink:].float().norm(dim=-1)
    return protected(out, first=min(n_sink, n))
