"""Policies one after another: ``Then(VisionZip(n_keep=192), TransPrune())``, or "visionzip >> transprune" by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vtprune.allotted import Allotted, units
from vtprune.cached import evicts
from vtprune.policies.base import Policy, check_ratio
from vtprune.tokens import ModelFacts, Selection, VisualTokens, site_name

ARROW = ">>"


@dataclass(init=False)
class Then:
    """Stages in the order in which they act; each sees what those before it left, as it is after merging.

    stages: policies. Each keeps its own share of what it sees: the shares multiply. One that evicts from the cache
            comes last, and its keep_ratio is of the whole prompt's keys and values: what all stages keep together.

    The sites of a stage lie behind those of the stage before it. At one site a budget for frames or views may come
    before a policy that chooses (QuoTA, then DivPrune): the two become one stage, ``Allotted``. Positions are
    renumbered if a stage does so. Newlines are offered only if all want them.
    Raises ValueError for fewer than two stages, and, once the model is known, for stages whose sites cross.
    """

    stages: tuple[Policy, ...]

    def __init__(self, *stages: Policy):
        if len(stages) < 2:
            raise ValueError(f"Then takes two policies or more, in order; got {len(stages)}")
        named = [stage for stage in stages if isinstance(stage, (str, type))]
        if named:
            raise ValueError(f"Then takes policy objects; got {named[0]!r}. By name it is 'visionzip >> transprune'")
        early = [stage for stage in stages[:-1] if evicts(stage)]
        if early:
            raise ValueError(
                f"{_name(early[0])} evicts from the cache, which is done when the prompt has been read: put it last, "
                "and only one such policy"
            )
        self.stages = tuple(_without_newlines(stages))

    def fitted(self, facts: ModelFacts) -> Policy:
        """Every stage fitted to the model; a budget and what it is for are one, by itself if nothing else is left."""
        stages = [stage.fitted(facts) if hasattr(stage, "fitted") else stage for stage in self.stages]
        last = stages[-1:] if evicts(stages[-1]) and not stages[-1].sites else []
        pruning = stages[: len(stages) - len(last)]
        stages = [*(unit[0] if len(unit) == 1 else Allotted(*unit) for unit in units(pruning)), *last]
        if len(stages) == 1:
            return stages[0]
        made = Then(*stages)
        for before, after in zip(stages, stages[1:]):
            if after.sites and max(before.sites) >= min(after.sites):
                raise ValueError(
                    f"{_name(after)} acts {site_name(min(after.sites))}, and {_name(before)}, which comes first, acts "
                    f"{site_name(max(before.sites))}; a stage begins behind the one before it. Change their layers or "
                    "their order"
                )
        return made

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(stage.needs for stage in self.stages))

    @property
    def sites(self) -> tuple[float, ...]:
        return tuple(sorted({site for stage in self.stages for site in stage.sites}))

    @property
    def positions(self) -> str:
        found = {getattr(stage, "positions", "original") for stage in self.stages}
        return next((how for how in ("compact", "compact-vision") if how in found), "original")

    @property
    def newlines(self) -> bool:
        return all(getattr(stage, "newlines", False) for stage in self.stages if stage.sites)

    @property
    def watch(self) -> Callable | None:
        """That of the last stage, as the next three; None where it has none."""
        return getattr(self.stages[-1], "watch", None)

    @property
    def evict(self) -> Callable | None:
        return getattr(self.stages[-1], "evict", None)

    @property
    def lookahead(self) -> int | None:
        return getattr(self.stages[-1], "lookahead", None)

    @property
    def glance(self) -> Callable | None:
        return getattr(self.stages[-1], "glance", None)

    @property
    def obeys_sinks(self) -> bool:
        return getattr(self.stages[-1], "obeys_sinks", False)

    @property
    def proportional(self) -> bool:
        return any(getattr(stage, "proportional", False) for stage in self.stages)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for stage in self.stages for note in getattr(stage, "notes", ()))

    def select(self, tokens: VisualTokens) -> Selection:
        """The answer of the stage whose site this is."""
        [i] = [i for i, stage in enumerate(self.stages) if tokens.site in stage.sites]
        memory = tokens.memory.setdefault(i, {})
        if memory.get("done"):
            return Selection.all(tokens)
        selection = self.stages[i].select(self.own(tokens, i))
        if not selection.last or i == len(self.stages) - 1:
            return selection
        memory["done"] = True
        return dataclasses.replace(selection, last=False)

    def own(self, tokens: VisualTokens, i: int) -> VisualTokens:
        """The tokens as stage ``i`` sees them: with a memory of its own."""
        memory = tokens.memory.setdefault(i, {})
        return dataclasses.replace(tokens, memory=memory.setdefault("own", {}))


def _name(policy: Policy) -> str:
    return type(policy).__name__


def _without_newlines(stages: Sequence[Policy]) -> list[Policy]:
    """The stages, none of which is offered newlines unless all that prune the prompt are."""
    if all(getattr(stage, "newlines", False) for stage in stages if stage.sites):
        return list(stages)
    found = []
    for stage in stages:
        if getattr(stage, "newlines", False):
            fields = {field.name for field in dataclasses.fields(stage)} if dataclasses.is_dataclass(stage) else set()
            if "newlines" not in fields:
                raise ValueError(
                    f"{_name(stage)} prunes newline tokens and the other stages do not; it cannot be mixed"
                )
            stage = dataclasses.replace(stage, newlines=False)
        found.append(stage)
    return found


def split_evenly(keep_ratio: float, stages: int) -> float:
    """The share that each stage keeps of what it sees, so that together they keep ``keep_ratio``."""
    check_ratio(keep_ratio)
    return keep_ratio ** (1 / stages)
