"""Values of entries that go are added to the entry with the likest key, as much as their own size is of both."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # entries that are compared to all others at a time
EPSILON = 1e-6


@torch.no_grad()
def merge_values(keys: Tensor, values: Tensor, keep: Tensor) -> Tensor:
    """(H_kv, K, d_v) values of the kept entries: (v + sum of w v_e) / (1 + sum of w) over those that joined it.

    w = max(cosine of the keys, 0) * |v_e| / (|v_e| + |v| + 1e-6); an entry joins the one of largest cosine, the first
    on a tie. Keys stay as they are.

    keys: (H_kv, N, d), values: (H_kv, N, d_v). keep: (H_kv, K) or (K,) for all heads, ascending, see ``keep_best``.
    Computed in float32, returned in the dtype of ``values``.
    """
    keep = keep.expand(len(keys), -1)
    if not keep.shape[1]:
        return values[:, :0]
    return torch.stack([_merged(k, v, rows) for k, v, rows in zip(keys, values, keep)]).to(values.dtype)


def _merged(key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    unit, value = F.normalize(key.float(), dim=-1), value.float()
    gone = torch.ones(len(key), dtype=torch.bool, device=key.device).index_fill(0, keep, False).nonzero().flatten()
    size = value.norm(dim=-1)
    total, weight = value[keep].clone(), torch.ones(len(keep), device=key.device)
    for rows in gone.split(BLOCK):
        cosine, to = (unit[rows] @ unit[keep].T).max(1)
        w = cosine.clamp(min=0) * size[rows] / (size[rows] + size[keep][to] + EPSILON)
        total.index_add_(0, to, w[:, None] * value[rows])
        weight.index_add_(0, to, w)
    return total / weight[:, None]
