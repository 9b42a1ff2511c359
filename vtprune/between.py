"""Work that some decoders do between two layers on the unpruned sequence, done on the rows that are there."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.forward import CURRENT, Forward


class _Override:
    """Stands in for a method of one decoder."""

    def __init__(self, pruner, name: str):
        self.pruner, self.name = pruner, name

    def original(self, *args, **kwargs):
        decoder = self.pruner.decoder
        return getattr(type(decoder), self.name)(decoder, *args, **kwargs)

    def forward(self) -> Forward | None:
        """The forward under way, if it is this model's and was pruned already."""
        if torch.compiler.is_compiling():
            return None
        forward = CURRENT.get()
        return forward if forward is not None and forward.owner is self.pruner and forward.steps else None


class Added(_Override):
    """DeepStack: vectors are added to the visual tokens by a full-length mask; see ``Family.between_layers``."""

    def __call__(self, hidden: Tensor, visual: Tensor, embeddings: Tensor) -> Tensor:
        forward = self.forward()
        if forward is None:
            return self.original(hidden, visual, embeddings)
        visual = visual.to(hidden.device)
        full = hidden.new_zeros(*visual.shape, hidden.shape[-1])
        full[visual] = embeddings.to(hidden.device, hidden.dtype)
        for step in forward.steps:
            full = step.apply(full)
        if forward.scattered:
            full = forward.scatter(full)
        return hidden + full


class Cut(_Override):
    """From here on the last columns are enough: hidden states and what goes with them are cut; ``Family.cuts_rows``.

    Hidden states have fewer rows than the rest, but the last of them are the last columns as long as none of these was
    dropped. Where one was, nothing is cut.
    """

    def __call__(self, hidden: Tensor, *others, **kwargs) -> tuple:
        forward, cut = self.forward(), self.original(hidden, *others, **kwargs)
        left = cut[0].shape[-2]
        if forward is None or left == hidden.shape[-2]:
            return cut
        if not forward.ends_whole(left):
            return (hidden, *others[: len(cut) - 1])
        forward.cut = True
        return cut
