"""A frame or view budget over a token policy: one says how many tokens each frame or crop keeps, the other which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vtprune.around import Around
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.share import side_by_side
from vtprune.part import part_of
from vtprune.policies.base import Policy
from vtprune.tokens import ModelFacts, Selection, VisualTokens, site_name


@dataclass
class Allotted(Around):
    """Shares tokens out by one policy, and has another one choose them, in every frame or crop by itself.

    budget: a policy with ``allot``, which says how many tokens each frame or view of a sample keeps. Its own way to
            choose or to resize tokens is not used, nor are its positions. What it does not speak of stays whole.
    policy: chooses them, at one site, where the budget is asked too; its own keep_ratio or n_keep is not used.

    Each frame is a sample of its own with ``n_keep``: likeness, coverage and merging stay inside it. Raises ValueError
    for policies that cannot be combined so.
    """

    budget: Policy
    policy: Policy

    def __post_init__(self):
        if not hasattr(self.budget, "allot"):
            raise ValueError(
                f"{_name(self.budget)} does not say how many tokens each frame or view keeps (allot); a budget is one "
                "of quota, vidcom2, hired, globalcom2 and holov"
            )
        why = _no_chooser(self.policy)
        if why:
            raise ValueError(
                f"{_name(self.policy)} cannot choose tokens inside the budget of {_name(self.budget)}: {why}. The "
                "budget comes first, and then a policy that ranks tokens, such as divprune"
            )

    @property
    def needs(self) -> frozenset[str]:
        return self.budget.needs | self.policy.needs

    @property
    def notes(self) -> tuple[str, ...]:
        of_budget = getattr(self.budget, "allot_notes", getattr(self.budget, "notes", ()))
        return (*of_budget, *getattr(self.policy, "notes", ()))

    @property
    def keep_ratio(self) -> float | None:
        """That of the budget."""
        return getattr(self.budget, "keep_ratio", None)

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float) -> None:
        self.budget = at_ratio(self.budget, keep_ratio)

    def fitted(self, facts: ModelFacts) -> Allotted:
        """Both fitted to the model."""
        both = (one.fitted(facts) if hasattr(one, "fitted") else one for one in (self.budget, self.policy))
        return Allotted(*both)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """What the budget allots."""

        def left(ratio: float) -> dict[float, int]:
            shares, _ = at_ratio(self.budget, ratio).allot(tokens)
            whole = len(tokens) - sum(len(share.rows) for share in shares)
            return {tokens.site: whole + sum(share.k for share in shares)}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """Every share by itself; shares of nothing are dropped."""
        (shares, note), parts = self.budget.allot(tokens), []
        for share in shares:
            there = share.rows.to(tokens.hidden.device)
            if not share.k:
                parts.append((there, Selection(there[:0])))
            elif share.k == len(there):
                parts.append((there, Selection(torch.arange(share.k, device=there.device))))
            else:
                chooser = at_ratio(self.policy, None)
                chooser.n_keep = share.k
                parts.append((there, chooser.select(part_of(tokens, share.rows, {}))))
        selection = side_by_side(tokens, parts)
        return dataclasses.replace(selection, note="; ".join(filter(None, (note, selection.note))))


def units(policies: Sequence[Policy]) -> list[tuple[Policy, ...]]:
    """Policies in a row, in which a budget and the policy behind it that acts at the same site are one unit.

    Raises ValueError for two policies at one site of which the first is no budget.
    """
    found: list[tuple[Policy, ...]] = []
    for policy in policies:
        before = found[-1] if found else ()
        if not before or len(before) > 1 or tuple(before[0].sites) != tuple(policy.sites):
            found.append((policy,))
        elif hasattr(before[0], "allot"):
            Allotted(before[0], policy)
            found[-1] = (before[0], policy)
        else:
            turned = hasattr(policy, "allot") and not _no_chooser(before[0])
            hint = (
                f"A budget comes first: {_name(policy)}, then {_name(before[0])}"
                if turned
                else "Put one of them at a later layer, or a budget for frames or views first (quota, vidcom2, hired)"
            )
            raise ValueError(
                f"{_name(before[0])} and {_name(policy)} both choose tokens {site_name(policy.sites[0])}, where the "
                f"second could only undo or repeat what the first did. {hint}"
            )
    return found


def _no_chooser(policy: Policy) -> str:
    """Why a policy cannot choose a number of tokens inside a frame; "" if it can."""
    if len(tuple(policy.sites)) > 1:
        return "it acts at several sites"
    if not hasattr(policy, "n_keep") or not getattr(policy, "exact_count", True):
        return "how many tokens it keeps is not n_keep alone"
    if getattr(policy, "newlines", False):
        return "it chooses among newlines too, which belong to no frame (newlines=False)"
    if getattr(policy, "proportional", False):
        return "its tokens stand for several in attention"
    return ""


def _name(policy: Policy) -> str:
    return type(policy).__name__
