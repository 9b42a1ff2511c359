"""Scores of cache entries by their keys alone: short ones, and those that point away from the others."""

import torch.nn.functional as F
from torch import Tensor


def knorm(keys: Tensor) -> Tensor:
    """(..., N) float32: -|k|, as short keys get much attention. keys: (..., N, d) after rotation.

    Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024,
    arXiv:2406.11430.
    """
    return -keys.float().norm(dim=-1)


def keydiff(keys: Tensor) -> Tensor:
    """(..., N) float32: minus the cosine of a key and the mean of all keys of unit length. keys: (..., N, d).

    Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction", 2025, arXiv:2504.15364. No padding among the keys.
    """
    keys = keys.float()
    anchor = F.normalize(keys, dim=-1).mean(-2, keepdim=True)
    return -F.cosine_similarity(keys, anchor, dim=-1)
