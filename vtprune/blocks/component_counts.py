"""How many components the frames of a video have at any threshold, for who looks for the one that leaves so many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.components import edge_components, similar_components
from vtprune_kernels.greedy_race import gram
from vtprune_kernels.merge import merge_tokens

HELD = 1 << 26
"""Similarities that are kept between thresholds, of the frames and of all tokens: 256 MiB each in float32."""
SHARE = 3
"""The means of up to one component for so many tokens are compared themselves; of more, by the products of tokens."""


@dataclass(frozen=True)
class Counted:
    """A threshold and how many components it leaves."""

    similarity: float
    count: int

    def __len__(self) -> int:
        return self.count


class ComponentCounts:
    """Counts components of the frames, and then of their means, by thresholds of cosine similarity.

    What no threshold changes is computed once: a maximum spanning tree of every frame, whose edges above a threshold
    join the frame's components there; and the products of all tokens, whose mean over two components is the product of
    the two components' means.

    x: (N, D) float32. sizes: tokens of each frame.
    """

    @torch.no_grad()
    def __init__(self, x: Tensor, sizes: Sequence[int]):
        if max(sizes) ** 2 > HELD:
            raise ValueError(f"frames of up to {int(HELD**0.5)} tokens are counted so; got one of {max(sizes)}")
        self.x, self.n = x, len(x)
        self.products = gram(x) if self.n**2 <= HELD else None
        self.a, self.b, self.weight = spanning_trees(x, sizes, self.products)

    @torch.no_grad()
    def __call__(self, similarity: float) -> Counted:
        above = self.weight > similarity
        label = edge_components(self.n, self.a[above], self.b[above])
        part = label.unique(return_inverse=True)[1]
        count = self.n - int(above.sum())  # every edge of a tree joins two components
        if self.products is None or SHARE * count <= self.n:
            found, _ = similar_components(merge_tokens(self.x, part, None, count), similarity)
        else:
            found = self._of_means(part, count, similarity)
        return Counted(similarity, len(found.unique()))

    def _of_means(self, part: Tensor, count: int, similarity: float) -> Tensor:
        """(count,) labels of the means of components."""
        product = self.products
        if count < self.n:
            product = merge_tokens(product, part, None, count).T.contiguous()
            product = merge_tokens(product, part, None, count)
        a, b = (_cosines(product) > similarity).nonzero().unbind(1)
        return edge_components(count, a, b)


def _cosines(product: Tensor) -> Tensor:
    """(..., n, n) of products of every two of n vectors."""
    length = product.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().clamp(min=1e-12)
    return product / length[..., None] / length[..., None, :]


def spanning_trees(x: Tensor, sizes: Sequence[int], products: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(E,) int64 ends and (E,) float32 cosines of the edges of a maximum spanning tree of every frame, E = N - frames.

    x: (N, D) float32. sizes: tokens of each frame. products: (N, N) of every two tokens, if they are known.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    by_size: dict[int, list[int]] = {}
    for frame, size in enumerate(sizes):
        by_size.setdefault(size, []).append(frame)
    ends: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for size, frames in by_size.items():
        step = max(1, HELD // max(1, size * size))
        for some in (frames[i : i + step] for i in range(0, len(frames), step)):
            first, spans = starts[some], [slice(start, start + size) for start in starts[some].tolist()]
            if products is None:
                unit = F.normalize(torch.stack([x[span] for span in spans]), dim=-1)
                cosine = unit @ unit.transpose(1, 2)
            else:
                cosine = _cosines(torch.stack([products[span, span] for span in spans]))
            a, b, weight = _trees(cosine.cpu().numpy())
            ends.append(np.stack([a + first[:, None], b + first[:, None]]).reshape(2, -1))
            weights.append(weight.ravel())
    a, b = torch.from_numpy(np.concatenate(ends, 1)).to(x.device)
    return a, b, torch.from_numpy(np.concatenate(weights)).to(x.device)


def _trees(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, n - 1) each: ends and cosines of the edges, as Prim's algorithm finds them in T matrices (n, n) at once."""
    frames, n, _ = cosine.shape
    every, best = np.arange(frames), cosine[:, 0].copy()
    near, found = np.zeros((frames, n), np.int64), np.empty((3, max(0, n - 1), frames), np.float64)
    best[:, 0] = -np.inf
    done = np.zeros((frames, n), bool)
    done[:, 0] = True
    for i in range(n - 1):
        new = best.argmax(1)
        found[:, i] = near[every, new], new, best[every, new]
        done[every, new] = True
        row = cosine[every, new]
        closer = row > best
        np.copyto(best, row, where=closer)
        np.copyto(near, new[:, None], where=closer)
        best[done] = -np.inf
    a, b, weight = found
    return a.T.astype(np.int64), b.T.astype(np.int64), weight.T.astype(np.float32)
