"""A policy that is looked at while it works: what it was offered at each site, which signals it read, what it said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtprune.policies.base import ScorePolicy
from vtprune.tokens import ModelFacts, Selection, VisualTokens


@dataclass(frozen=True, eq=False)
class Offer:
    """What a policy saw at a site: the tokens with the signals that it read, and its answer."""

    tokens: VisualTokens
    selection: Selection

    @property
    def site(self) -> float:
        return self.tokens.site


class Watched:
    """A policy with all its members, and ``offers``: those of the last prefill, of its only sample."""

    def __init__(self, policy: Any):
        self.policy, self.offers = policy, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def __repr__(self) -> str:
        return repr(self.policy)

    def fitted(self, facts: ModelFacts) -> Watched:
        """The policy for a given model, still watched."""
        if hasattr(self.policy, "fitted"):
            self.policy = self.policy.fitted(facts)
        return self

    def select(self, tokens: VisualTokens) -> Selection:
        """The policy's own answer."""
        signals = _Read(tokens.signals)
        if self.offers and tokens.site <= self.offers[-1].site:
            self.offers = []
        selection = self.policy.select(dataclasses.replace(tokens, signals=signals))
        self.offers.append(Offer(dataclasses.replace(tokens, signals=signals.seen, memory={}), selection))
        return selection


class _Read(Mapping):
    """Signals, of which those that were read are kept."""

    def __init__(self, signals: Mapping[str, Tensor]):
        self._signals, self.seen = signals, {}

    def __getitem__(self, name: str) -> Tensor:
        self.seen[name] = self._signals[name]
        return self.seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals)

    def __len__(self) -> int:
        return len(self._signals)


def scores(policy: Any, offer: Offer) -> tuple[Tensor, str] | None:
    """((N,) float32 on the CPU, what it is): the policy's score of each token offered, else a signal that it read.

    None for a policy that goes by neither, as one that keeps every second token.
    """
    tokens = offer.tokens
    if isinstance(policy, ScorePolicy) and type(policy).score is not ScorePolicy.score:
        return policy.score(tokens).detach().float().cpu(), "score"
    found = []
    for name, signal in sorted(tokens.signals.items()):
        if isinstance(signal, Tensor) and signal.shape[-1:] == (len(tokens),):
            value = signal.detach().float().cpu()
            value = value.reshape(-1, len(tokens)).mean(0)
            found.append((value, name))
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    # as policies that add up several signals do it, each with the same weight
    total = torch.stack([value / (value.abs().sum() + 1e-8) for value, _ in found]).sum(0)
    return total, "sum of " + " and ".join(name for _, name in found)
