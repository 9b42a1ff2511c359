"""CAOTE: by how much the output of attention changes when one entry of the cache goes.

Goel et al., "CAOTE: KV Cache Selection for LLMs via Attention Output Error-Based Token Eviction", 2025,
arXiv:2504.14051. Exact for one entry; of several that go together it is not the sum.
"""

import torch
from torch import Tensor

from vtprune.cache_scores.probe import of_batch, probe_blocks, seeing
from vtprune_kernels.attention_columns import EVERYTHING, Visible


@torch.no_grad()
def output_change(attention: Tensor, values: Tensor, fast: bool = False) -> Tensor:
    """(M, N) float32: c_j = a_j / (1 - a_j) |o - v_j|, which is |o - o without j|, for each row a and o = a V.

    attention: (M, N) >= 0, scaled to sum 1 here; a row of zeros gives zeros. values: (N, d), of one key head.
    fast:      the plain mean of the values takes the place of o.
    Where a row attends to one entry alone, nothing would be left without it: its c is then |v_j|.
    """
    values = values.float()
    total = attention.float().sum(-1, keepdim=True)
    a = torch.where(total > 0, attention.float() / total, 0)
    output = values.mean(0, keepdim=True) if fast else a @ values
    # differences, not products: an entry like the output has a small change that must not drown in rounding
    far = torch.cdist(output, values, compute_mode="donot_use_mm_for_euclid_dist")
    change = a / (1 - a).clamp(min=torch.finfo(a.dtype).eps) * far
    if fast or not len(values):
        return change
    # 1 - a and o - v of the entry that has nearly everything are differences of equals: from the others instead
    most = a.argmax(-1, keepdim=True)
    others = a.scatter(-1, most, 0)
    left = others.sum(-1, keepdim=True)
    without = torch.where(left > 0, others @ values / left, 0)
    return change.scatter(-1, most, a.gather(-1, most) * (without - values[most[:, 0]]).norm(dim=-1, keepdim=True))


@torch.no_grad()
def caote(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    fast: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """(B, H_kv, N) float32: the mean change of the output over the queries and over the query heads of each group.

    q: (B, H, R, d) a few queries. k: (B, H_kv, N, d), values: (B, H_kv, N, d_v). Attention is held block by block.
    Queries that see nothing do not count. fast: as of ``output_change``; its mean is over values of entries that
    ``visible.valid`` does not hide.
    """
    batch, groups, n, _ = k.shape
    share, visible = q.shape[1] // groups, of_batch(visible, batch)
    out = torch.zeros(batch, groups, n, device=k.device)
    for block in probe_blocks(q, k, scale=scale, visible=visible, softcap=softcap):
        real = None if visible.valid is None else visible.valid[block.sample]
        for i, rows in enumerate(block.attention.split(share)):
            group = block.heads.start // share + i
            if real is None:
                out[block.sample, group] += output_change(rows.flatten(0, 1), values[block.sample, group], fast).sum(0)
            else:
                # what padding holds, NaN included, goes nowhere
                change = output_change(rows.flatten(0, 1)[:, real], values[block.sample, group][real], fast)
                out[block.sample, group, real] += change.sum(0)
    count = seeing(visible, batch, q.shape[2], n, k.device).sum(1).clamp(min=1) * share
    return out / count[:, None, None]
