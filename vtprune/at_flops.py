"""A FLOPs budget for any policy: the keep_ratio that meets it is looked for, prompt by prompt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vtprune import flops
from vtprune.allotted import Allotted
from vtprune.around import Around
from vtprune.blocks.forecast import at_ratio
from vtprune.blocks.stages import pool_sizes
from vtprune.cached import evicts
from vtprune.policies.base import Policy, ScorePolicy, check_ratio
from vtprune.served import Served
from vtprune.then import Then
from vtprune.tokens import ModelFacts, Selection, VisualTokens

STEPS = 30
"""Halvings of the range of keep_ratio: finer than one token of a million."""
LEAST = 1e-9

_MEMORY = "at_flops"


@dataclass
class _State:
    """What is known of one sample in this forward.

    visual, others: tokens that policies are offered at first, and all others. full, goal: FLOPs unpruned and at most.
    left: by site so far, what lived on behind it. made: by stage, the policy with the keep_ratio that was found.
    """

    visual: int
    others: int
    full: int
    goal: int
    left: dict[float, int] = field(default_factory=dict)
    made: dict[int, Policy] = field(default_factory=dict)
    inner: dict = field(default_factory=dict)


@dataclass
class AtFlops(Around):
    """Prunes with the largest keep_ratio whose prefill costs the decoder no more than was asked for.

    What is counted is what ``vtprune.flops`` counts of the decoder's layers, attention over the pairs that a causal
    mask allows, for a sample's own tokens in this forward: padding, earlier turns, the head, the vision tower and
    selecting itself are not. Every sample has a keep_ratio of its own. Where counts hang on what tokens show (merging
    by thresholds), less may be spent than was asked for; policies that can are asked anew at every site. Where even the
    smallest keep_ratio costs more, that is taken and the report says so.

    policy:     with a keep_ratio, which is not used, and a ``forecast`` of what it leaves; or ``Then(...)``, of which
                every stage saves equally many FLOPs, unless a later one cannot.
    keep_flops: fraction of the FLOPs of the unpruned prompt KEPT, in (0, 1].
    keep_ratio: instead of it: as many FLOPs as with this fraction of the visual tokens in all layers, in (0, 1].
    facts:      of the model; filled in by ``wrap``.
    """

    policy: Policy
    keep_flops: float | None = None
    keep_ratio: float | None = None
    facts: ModelFacts | None = field(default=None, repr=False, compare=False)

    keep_ratio_is: ClassVar[str] = "flops"

    def __post_init__(self):
        if (self.keep_flops is None) == (self.keep_ratio is None):
            raise ValueError(
                "give keep_flops, the fraction of the unpruned prompt's FLOPs KEPT, or keep_ratio, the fraction of "
                "visual tokens in all layers that costs as many; got "
                f"keep_flops={self.keep_flops!r} and keep_ratio={self.keep_ratio!r}"
            )
        check_ratio(self.keep_ratio) if self.keep_flops is None else _check_flops(self.keep_flops)
        for stage in self.stages:
            _check_stage(stage)
        if self.facts is not None:
            self._served = Served.of(self.sites, self.facts.depth, self.facts.halves)
            self._count = flops.decoder_counter(self.facts.decoder)

    def __repr__(self) -> str:
        wanted = f"keep_flops={self.keep_flops}" if self.keep_ratio is None else f"keep_ratio={self.keep_ratio}"
        return f"AtFlops({uncounted(self.policy)}, {wanted})"

    def fitted(self, facts: ModelFacts) -> AtFlops:
        """The policy fitted to the model. Raises NotImplementedError for a decoder whose FLOPs are not known."""
        try:
            flops.decoder_counter(facts.decoder)
        except (ValueError, NotImplementedError) as error:
            raise NotImplementedError(
                f"a FLOPs budget cannot be met in this {facts.model_type}: {error}. Give keep_ratio without "
                "budget='flops', and policies in a row a split"
            ) from None
        policy = self.policy.fitted(facts) if hasattr(self.policy, "fitted") else self.policy
        return dataclasses.replace(self, policy=policy, facts=facts)

    @property
    def stages(self) -> tuple[Policy, ...]:
        """The policies that share the budget."""
        return self.policy.stages if isinstance(self.policy, Then) else (self.policy,)

    # ---- one sample

    def select(self, tokens: VisualTokens) -> Selection:
        """The answer of the policy with the keep_ratio that was found for this sample."""
        if self.facts is None:
            raise ValueError("a FLOPs budget goes by the model: call vtprune.wrap(model, ...), or fitted(facts) first")
        if _MEMORY not in tokens.memory:
            tokens.memory[_MEMORY] = self._start(tokens)
        state: _State = tokens.memory[_MEMORY]
        inner = dataclasses.replace(tokens, memory=state.inner)
        i = next(i for i, stage in enumerate(self.stages) if tokens.site in stage.sites)
        note = ""
        if i not in state.made or getattr(self.stages[i], "refits", False):
            own = self.policy.own(inner, i) if isinstance(self.policy, Then) else inner
            state.made[i], note = self._solved(state, i, own)
        selection = self._made(state).select(inner)
        state.left[tokens.site] = len(selection.keep)
        return dataclasses.replace(selection, note="; ".join(filter(None, (selection.note, note))))

    def _start(self, tokens: VisualTokens) -> _State:
        length = len(tokens) + len(tokens.text) if tokens.length is None else tokens.length
        depth, others = self.facts.depth, length - len(tokens)
        full = self._cost([length] * depth)
        if self.keep_flops is not None:
            return _State(len(tokens), others, full, int(self.keep_flops * full))
        # what a policy that acts before the LLM keeps of every image and video
        sizes = patches(tokens)
        kept = len(tokens) - sum(sizes) + sum(max(1, round(n * self.keep_ratio)) for n in sizes if n)
        return _State(len(tokens), others, full, self._cost([others + kept] * depth))

    def _solved(self, state: _State, i: int, tokens: VisualTokens) -> tuple[Policy, str]:
        """Stage ``i`` with the largest keep_ratio that the budget allows, and what is to be said of it."""
        stage = self.stages[i]
        forecast = stage.forecast(tokens)
        # every stage saves as much as the others
        goal = state.full - (state.full - state.goal) * (i + 1) // len(self.stages)
        # and leaves no more than what later ones can make good
        segments = len(pool_sizes(tokens, "segment"))
        fewest = {min(later.sites): segments for later in self.stages[i + 1 :]}

        def fits(ratio: float) -> bool:
            left = {**state.left, **forecast.left(ratio)}
            fits_goal = self._spent(state, left) <= goal
            return fits_goal and (not fewest or self._spent(state, {**left, **fewest}) <= state.goal)

        low, high = max(forecast.least, LEAST), 1.0
        if fits(high):
            return at_ratio(stage, 1.0), ""
        if not fits(low):
            return at_ratio(stage, low), self._missed(state, {**state.left, **forecast.left(low)}, i)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        told = "" if getattr(stage, "refits", False) else f"{_name(stage)} with keep_ratio={low:.4g} meets the budget"
        return at_ratio(stage, low), told

    def _missed(self, state: _State, left: Mapping[float, int], i: int) -> str:
        if i < len(self.stages) - 1:
            return f"{_name(self.stages[i])} cannot save its share of the FLOPs; later stages make it good if they can"
        wanted, least = state.goal / state.full, self._spent(state, left) / state.full
        return (
            f"the budget is {wanted:.1%} of the FLOPs, and {_name(self.stages[i])} leaves {least:.1%} of them at least"
        )

    def _spent(self, state: _State, left: Mapping[float, int]) -> int:
        """FLOPs of the sample's prefill if so many tokens live on behind the sites."""
        return self._cost(self._served.lengths(state.visual, state.others, left))

    def _cost(self, lengths: list[flops.Length]) -> int:
        return self._count(lengths).total_causal

    def _made(self, state: _State) -> Policy:
        """The policy in which every stage has the keep_ratio that was found so far."""
        if not isinstance(self.policy, Then):
            return state.made[0]
        return Then(*(state.made.get(i, stage) for i, stage in enumerate(self.stages)))


def patches(tokens: VisualTokens) -> list[int]:
    """How many tokens of each image and video are no newlines or separators, which not all policies are offered."""
    if tokens.coords is None:
        return [len(segment) for segment in tokens.segments]
    views = tokens.coords[:, 0].cpu()
    return [int((views[s.span] >= 0).sum()) if s.grids else len(s) for s in tokens.segments]


def uncounted(policy: Policy) -> str:
    """A policy in a line, without how much it keeps."""
    return re.sub(r"\b(?:keep_ratio|n_keep)=[\w.]+(?:, )?", "", repr(policy))


def _name(policy: Policy) -> str:
    return type(policy).__name__


def _check_flops(keep_flops: Any) -> None:
    number = isinstance(keep_flops, (int, float)) and not isinstance(keep_flops, bool)
    if not number or not 0 < keep_flops <= 1:  # nan compares false
        raise ValueError(
            f"keep_flops is the fraction of the unpruned prompt's FLOPs in the decoder's layers KEPT, in (0, 1]; got "
            f"{keep_flops!r}"
        )


def _check_stage(stage: Policy) -> None:
    """Raises ValueError for a policy without a keep_ratio, or one that does not tell what it will leave."""
    if evicts(stage):
        raise ValueError(
            f"{_name(stage)} evicts from the cache when the prompt has been read, which saves none of its FLOPs: wrap "
            "with keep_ratio alone, which for this policy is of keys and values"
        )
    several = len(tuple(stage.sites)) > 1 and getattr(type(stage), "forecast", None) is ScorePolicy.forecast
    if not hasattr(stage, "keep_ratio") or not hasattr(stage, "forecast") or several:
        missing = "keep_ratio" if not hasattr(stage, "keep_ratio") else "forecast(tokens) of what each site leaves"
        raise ValueError(
            f"a FLOPs budget is met by looking for a keep_ratio; {_name(stage)} has no {missing}: wrap without "
            "budget='flops' and keep_flops, or add it (see vtprune/blocks/forecast.py)"
        )
    counts = stage.budget if isinstance(stage, Allotted) else stage
    if getattr(counts, "n_keep", None) is not None:
        raise ValueError(
            f"n_keep={counts.n_keep} says what {_name(counts)} keeps, and a FLOPs budget looks for that: leave it out"
        )
    fields = {one.name for one in dataclasses.fields(stage)} if dataclasses.is_dataclass(stage) else set()
    if "keep_ratio" in fields:
        # options that fix by themselves what is kept are refused beside keep_ratio
        dataclasses.replace(stage, keep_ratio=1.0, **({"n_keep": None} if "n_keep" in fields else {}))
