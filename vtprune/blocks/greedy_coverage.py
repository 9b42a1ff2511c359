"""Greedy coverage: picks tokens that stand for what no pick stands for yet, of the image or of a question too."""

import torch
from torch import Tensor

from vtprune_kernels.greedy_race import gram
from vtprune_kernels.greedy_rules import Coverage, MatrixCoverage
from vtprune_kernels.greedy_select import greedy_select

BLOCK = 1024  # rows
AFTER_PROJECTOR = "tokens are compared as the projector gives them; the published method compares what it is given"


def is_number(value: object) -> bool:
    """Whether an option is an int or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@torch.no_grad()
def cover_tokens(features: Tensor, k: int, weight: Tensor, mode: str) -> Tensor:
    """(k,) int64 in order: picks that raise the sum over tokens of the cosine to the nearest pick, at least 0.

    features: (N, D). weight: (N,) a token's own worth, 0 or more. mode: "multiply" or "add" it to what a token raises.
    Source: SCOPE, NeurIPS 2025.
    """
    return greedy_select(features, k, Coverage(weight.to(features.device), mode))


@torch.no_grad()
def cover_matrix(
    words: Tensor, tokens: Tensor, features: Tensor, *, alpha: float, text_temperature: float, temperature: float
) -> Tensor:
    """(m + N, N) float32: how well each of N tokens stands for each of m words, and, by ``alpha``, for each token.

    A word's row is the softmax over the tokens of cosine / ``text_temperature``, over m; a token's row the same of the
    tokens among themselves, over N, by ``temperature`` and ``alpha``. Besides the result little memory is used.

    words: (m, D), m may be 0. tokens: (N, D), of the words' width. features: (N, C), which compare tokens.
    Source: MMTok, ICLR 2026.
    """
    m, n = len(words), len(tokens)
    out = torch.empty(m + n, n, device=tokens.device)
    words, tokens, features = (_unit(x) for x in (words, tokens, features))
    if m:
        out[:m] = (words @ tokens.T / text_temperature).softmax(1) / m
    gram(features, out[m:])
    for cosine in out[m:].split(BLOCK):
        cosine.copy_(alpha * (cosine / temperature).softmax(1).div_(n))
    return out


@torch.no_grad()
def cover_rows(matrix: Tensor, k: int, eligible: Tensor | None = None) -> Tensor:
    """(k,) int64 in order: columns of an (R, N) matrix that raise the sum of the rows' largest picked entries.

    eligible: (N,) bool, False for columns that are never picked; where they are all that is left, fewer are returned.
    """
    order = greedy_select(matrix, k, MatrixCoverage(), eligible=eligible)
    return order if eligible is None else order[order >= 0]


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length: divided in their dtype, then in float32."""
    return (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-8)).float()
