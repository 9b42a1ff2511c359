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
        return added(forward, hidden, visual, embeddings)


def added(forward: Forward, hidden: Tensor, visual: Tensor, embeddings: Tensor) -> Tensor:
    """``hidden`` (B, P, D) of the rows that are there with ``embeddings`` (visual tokens, D) added to those they hold.

    visual: (B, L) bool, the visual tokens of the unpruned prompt. A merged row gets what its tokens would have got.
    """
    visual = visual.to(hidden.device)
    full = hidden.new_zeros(*visual.shape, hidden.shape[-1])
    full[visual] = embeddings.to(hidden.device, hidden.dtype)
    for step in forward.steps:
        full = step.apply(full)
    if forward.scattered:
        full = forward.scatter(full)
    return hidden + full


def deferred(forward: Forward, names: tuple[str, str], arguments: dict, first: int) -> dict:
    """The decoder's arguments without what it would add before layers behind ``first``: hooks do that, by ``added``.

    names: ``Family.adds_in_loop``.
    """
    mask, features = (arguments.get(name) for name in names)
    if not features or mask is None:
        return arguments
    forward.to_add = mask.squeeze(-1), {layer: feature for layer, feature in features.items() if layer > first}
    return {**arguments, names[1]: {layer: feature for layer, feature in features.items() if layer <= first}}


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
