"""The question of a prompt: its text tokens after the last image or video."""

import torch
from torch import Tensor

from vtprune.tokens import VisualTokens


def question_rows(tokens: VisualTokens) -> Tensor:
    """(m,) int64 rows of ``tokens.text`` that follow the last visual token; all of them where none does.

    The end of the chat template is among them: a policy sees no token ids that would tell it apart.
    """
    n, device = len(tokens.text), tokens.text.device
    if tokens.text_position is None or tokens.position is None or not len(tokens):
        return torch.arange(n, device=device)
    after = (tokens.text_position > tokens.position.max()).nonzero()[:, 0]
    return after if len(after) else torch.arange(n, device=device)


def mean_cosine(features: Tensor, words: Tensor) -> Tensor:
    """(N,) float32: the mean cosine of each of (N, D) features to (m, D) words; 0 where there are no words."""
    x, w = (t.float() / t.float().norm(dim=-1, keepdim=True).clamp(min=1e-8) for t in (features, words))
    # the mean of cosines is the cosine to the mean of directions
    return x @ w.sum(0) / max(1, len(w))
