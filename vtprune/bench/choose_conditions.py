"""The conditions of a run, from the command line: the policies at each ratio, and the controls beside them.

Controls are there unless they are switched off: a number without them says nothing of what a policy is good for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.bench.condition import Condition, Kind
from vtprune.cli.error import UserError, did_you_mean
from vtprune.cli.options import make_policy
from vtprune.tokens import BEFORE_LLM

CONTROLS: tuple[Kind, ...] = (
    *("blind", "other", "random", "twin", "uniform", "pool", "downsampled", "fewer frames", "same time"),
)
"""What ``--controls`` may name, also with a hyphen for the space. "full" is no choice: without it nobody could tell
that a policy pruned."""

KNOW_NOTHING: tuple[Kind, ...] = ("random", "uniform", "pool")
"""Policies that are controls: they look at nothing that the tokens show."""

TWINS = 2
"""Draws of a policy's random twin."""

SEEDS = 3
"""Draws of random tokens."""

POSITIONS = ("original", "compact")
BY_FLOPS = "budget=flops"


@dataclass(frozen=True)
class Named:
    """A policy as the command line names it, ``NAME[:option=value]...[:positions=...]``."""

    name: str
    options: tuple[str, ...] = ()
    positions: str | None = None

    @property
    def is_control(self) -> bool:
        """Whether naming it is asking for a control."""
        return self.name in (*KNOW_NOTHING, "none") and not self.options and not self.positions

    def make(self, keep_ratio: float) -> Any:
        """The policy at a ratio. Raises ValueError for what it refuses."""
        return make_policy(self.name, self.options, keep_ratio=str(keep_ratio))


def read_policy(text: str) -> Named:
    """A policy from its text. Raises UserError; names and values of options are looked at by ``Named.make``."""
    # a value may hold a colon, but no colon before a name and an equals sign
    name, *options = re.split(r":(?=[\w-]+\s*=)", text.strip())
    places = [option.partition("=")[2].strip() for option in options if option.startswith("positions")]
    if len(places) > 1 or (places and places[0] not in POSITIONS):
        raise UserError(f"positions is {' or '.join(POSITIONS)}, once; got {text!r}")
    kept = tuple(option.strip() for option in options if not option.startswith("positions"))
    for option in kept:
        if option.partition("=")[0].strip().replace("-", "_") in ("keep_ratio", "n_keep"):
            raise UserError(f"policies are compared at the ratios of --keep-ratio, all of them; take {option!r} out")
    if ":" in name:
        raise UserError(f"an option of a policy is name=value, such as fastv:layer=3; got {text!r}")
    return Named(name, kept, places[0] if places else None)


def read_ratios(text: str) -> tuple[float, ...]:
    """ "0.5,0.25" -> (0.5, 0.25). Raises UserError for what is no ratio, and for one that is there twice."""
    ratios: list[float] = []
    for part in text.split(","):
        try:
            ratio = float(part)
        except ValueError:
            ratio = float("nan")
        if not 0 < ratio <= 1:
            raise UserError(
                f"--keep-ratio takes fractions of visual tokens KEPT, in (0, 1], with commas between them; got "
                f"{part.strip()!r} in {text!r}"
            )
        # as they are named in tables
        if f"{ratio:g}" in [f"{one:g}" for one in ratios]:
            raise UserError(f"--keep-ratio has {ratio:g} twice: {text!r}; give each once")
        ratios.append(ratio)
    return tuple(ratios)


def read_controls(text: str) -> tuple[Kind, ...]:
    """ "all", "none", or names with commas. Raises UserError for others."""
    if text in ("all", "none"):
        return CONTROLS if text == "all" else ()
    names = [part.strip().replace("-", " ") for part in text.split(",")]
    for name in names:
        if name not in CONTROLS:
            known = [control.replace(" ", "-") for control in CONTROLS]
            hint = did_you_mean(name.replace(" ", "-"), known)
            raise UserError(f"unknown control {name!r}; {hint}--controls is all, none, or some of {', '.join(known)}")
    return tuple(control for control in CONTROLS if control in names)


def choose_conditions(
    policies: Sequence[str],
    keep_ratios: Sequence[float],
    controls: Collection[Kind] = CONTROLS,
    *,
    clips: bool = True,
    seed: int = 0,
    by_flops: bool = False,
) -> tuple[list[Condition], list[str]]:
    """The conditions of a run, "full" first; at ratio 1 every policy keeps everything, so "full" stands for it.

    policies: texts. clips: whether a task asks about clips, which can have fewer frames. seed: of the first draw of
    random tokens; the next ones have the next seeds. by_flops: gives every policy, controls aside, the FLOPs that the
    ratio's visual tokens cost in all layers, which is what the controls cost as they are.
    Beside them, sentences about the policies that are not asked at some of the ratios because they refuse them.
    Raises UserError for a policy that is unknown, named twice, or refuses an option or all ratios.
    """
    ratios = [ratio for ratio in keep_ratios if ratio < 1]
    if by_flops:
        policies = [text if read_policy(text).is_control else f"{text}:{BY_FLOPS}" for text in policies]
    named = [one for one in map(read_policy, policies) if one.name != "none"]
    refused = _check(policies, ratios or [0.5])
    found = [Condition("full")]
    found += [Condition(kind) for kind in ("blind", "other") if kind in controls]
    # a control that is asked for by name, as a policy, is that control
    plain = {one.name for one in named if one.is_control}
    judged = [one for one in named if not one.is_control]
    for ratio in ratios:
        for kind in KNOW_NOTHING:
            if kind in controls or kind in plain:
                found += _drawn(Named(kind), kind, ratio, seed)
        smaller = ("downsampled", "fewer frames") if clips else ("downsampled",)
        found += [Condition(kind, keep_ratio=ratio) for kind in smaller if kind in controls]
        able = [one for one in judged if (one, ratio) not in refused]
        own = [condition for one in able for condition in _drawn(one, "policy", ratio, seed)]
        found += own
        if "twin" in controls:
            found += [twin for one in able for twin in _twins(one, ratio, seed)]
        if "same time" in controls:
            # seeds take the same time
            first = {condition.row: condition for condition in reversed(own)}
            found += [Condition("same time", keep_ratio=ratio, beside=c.name) for c in own if first[c.row] is c]
    return found, [f"{one.name} is not asked at {ratio:g}: {why}" for (one, ratio), why in refused.items()]


def _drawn(one: Named, kind: Kind, ratio: float, seed: int) -> Iterator[Condition]:
    """A policy at a ratio; random tokens with several seeds, unless one is chosen."""
    chosen = any(option.partition("=")[0].strip() == "seed" for option in one.options)
    seeds = range(seed, seed + SEEDS) if one.name == "random" and not chosen else [None]
    for each in seeds:
        yield Condition(kind, one.name, one.options, ratio, each, one.positions)


def _twins(one: Named, ratio: float, seed: int) -> Iterator[Condition]:
    """Random tokens with the counts of a policy, where those that are dropped before the LLM are no fair control."""
    policy = one.make(ratio)
    places = one.positions or getattr(policy, "positions", POSITIONS[0])
    if one.name == "random" or not policy.sites or (set(policy.sites) == {BEFORE_LLM} and places == POSITIONS[0]):
        return
    [beside] = _drawn(one, "policy", ratio, seed)
    for each in range(seed, seed + TWINS):
        yield Condition("twin", "random", (), ratio, each, one.positions, beside.name)


def _check(policies: Sequence[str], ratios: Sequence[float]) -> dict[tuple[Named, float], str]:
    """Makes every policy at every ratio, before anything is loaded; why some refuse some of the ratios."""
    made: list[tuple[str, Any]] = []
    refused: dict[tuple[Named, float], str] = {}
    for text in policies:
        one = read_policy(text)
        if one.name == "none":
            continue
        policies_made, reasons = [], {}
        for ratio in ratios:
            try:
                policies_made.append(one.make(ratio))
            except (ValueError, TypeError) as error:
                reasons[one, ratio] = str(error)
        if not policies_made:
            raise UserError(f"--policy {text}: {next(iter(reasons.values()))}")
        refused |= reasons
        which = (policies_made[-1], one.positions or getattr(policies_made[-1], "positions", POSITIONS[0]))
        for other, before in made:
            if before == which:
                same = "is there twice" if other == text else f"and --policy {other} are the same"
                raise UserError(f"--policy {text} {same}; give each policy once")
        made.append((text, which))
    return refused
