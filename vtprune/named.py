"""Policies by name: one, or several in a row, with their options and what is meant by a wrong one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from vtprune.allotted import units
from vtprune.at_flops import AtFlops
from vtprune.cached import evicts
from vtprune.policies.base import POLICIES, Policy, check_ratio
from vtprune.then import ARROW, Then, split_evenly

HOW_MANY = ("keep_ratio", "n_keep", "keep_flops")
"""Options that say how much is kept; a policy takes one of them."""

SPLITS = ("flops", "even")


def named_policy(name: str, options: dict, by_flops: bool = False) -> Policy:
    """The registered policy ``name`` with ``options``. Raises ValueError that suggests the name or option meant.

    Names with ">>" between them are stages, which share ``keep_ratio`` by ``split``: "flops", the default, is
    ``budget="flops"``, and every stage saves equally many; "even" has every stage keep an equal share of what it sees;
    or a ratio for each, instead of keep_ratio. by_flops: is ``budget="flops"`` where the policy's own ``budget`` is an
    option too.
    """
    options = dict(options)
    keep_flops = options.pop("keep_flops", None)
    if options.get("budget") == "flops":
        by_flops = options.pop("budget") == "flops"
    if keep_flops is None and not by_flops:
        return _in_a_row(name, options) if ARROW in name else _registered(name, options)
    given = [option for option in HOW_MANY if options.get(option) is not None]
    if given != ([] if keep_flops is not None else ["keep_ratio"]):
        raise ValueError(
            "budget='flops' takes keep_ratio, and keep_flops stands instead of keep_ratio and n_keep; got "
            f"{', '.join(f'{option}={options[option]!r}' for option in given) or 'none of them'}"
            f"{'' if keep_flops is None else f' and keep_flops={keep_flops!r}'}"
        )
    keep_ratio = options.pop("keep_ratio", None)
    stages = _unsplit(name, options) if ARROW in name else _registered(name, options)
    return AtFlops(stages, keep_flops=keep_flops, keep_ratio=keep_ratio)


def _registered(name: str, options: dict) -> Policy:
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown policy {name!r}; {hint}known: {', '.join(sorted(POLICIES))}")
    cls = POLICIES[name]
    check_names(name, options, {field.name for field in dataclasses.fields(cls) if field.init})
    return cls(**options)


def _in_a_row(text: str, options: dict) -> Policy:
    """Stages that share a keep_ratio, or have one each; a budget and the policy that it is for have the same."""
    _check_stage_options(options)
    made = [_registered(name.strip(), {}) for name in text.split(ARROW)]
    if evicts(made[-1]):
        return _and_evicted(text, options)
    groups, split = units(made), options.get("split", "flops")
    what = ", ".join(type(group[0]).__name__ for group in groups)
    if isinstance(split, str):
        if split not in SPLITS:
            raise ValueError(f"split is 'flops', 'even' or a ratio for each of {what}; got {split!r}")
        keep_ratio = options.get("keep_ratio", 0.5)
        check_ratio(keep_ratio)
        if split == "flops" and len(groups) > 1:
            return AtFlops(Then(*made), keep_ratio=keep_ratio)
        split = [split_evenly(keep_ratio, len(groups))] * len(groups)
    elif "keep_ratio" in options or not isinstance(split, Sequence) or len(split) != len(groups):
        raise ValueError(f"split is a ratio for each of {what}, instead of keep_ratio; got {options}")
    shares = [share for group, share in zip(groups, split, strict=True) for _ in group]
    names = (name.strip() for name in text.split(ARROW))
    return Then(*(_registered(name, {"keep_ratio": share}) for name, share in zip(names, shares, strict=True)))


def _and_evicted(text: str, options: dict) -> Policy:
    """Stages of which the last evicts from the cache, to keep_ratio of the prompt; the others go half of that way."""
    *names, last = (name.strip() for name in text.split(ARROW))
    split = options.get("split", "even")
    if isinstance(split, str):
        if split != "even":
            raise ValueError(
                f"{last} evicts from the cache, which saves no FLOPs of the prompt, so split is 'even' or two ratios, "
                f"of what {f' {ARROW} '.join(names)} keeps and of what is kept in all; got {split!r}"
            )
        keep_ratio = options.get("keep_ratio", 0.5)
        check_ratio(keep_ratio)
        split = (split_evenly(keep_ratio, 2), keep_ratio)
    elif "keep_ratio" in options or not isinstance(split, Sequence) or len(split) != 2:
        raise ValueError(
            f"split is two ratios here, of what {f' {ARROW} '.join(names)} keeps and of what is kept in all, instead "
            f"of keep_ratio; got {options}"
        )
    pruning = named_policy(f" {ARROW} ".join(names), {"keep_ratio": split[0]})
    return Then(pruning, _registered(last, {"keep_ratio": split[1]}))


def _unsplit(text: str, options: dict) -> Policy:
    """Stages of which a FLOPs budget finds what each keeps."""
    _check_stage_options(options)
    if options.get("split", "flops") != "flops":
        raise ValueError(
            f"split={options['split']!r} says what every stage keeps, and a FLOPs budget looks for that: give one"
        )
    return Then(*(_registered(name.strip(), {}) for name in text.split(ARROW)))


def _check_stage_options(options: dict) -> None:
    unknown = sorted(set(options) - {"keep_ratio", "split"})
    if unknown:
        raise ValueError(
            f"policies in a row take keep_ratio or split, or keep_flops; got {unknown[0]!r}. An option of one of them "
            "goes into its object: vtprune.Then(POLICIES['fastv'](layer=3), ...)"
        )


def check_names(name: str, options: dict, known: set[str]) -> None:
    """Raises ValueError for an option that is not ``known``, with the one that is closest, or whose it is."""
    for option in options:
        if option in known:
            continue
        close = difflib.get_close_matches(option, known, 1)
        owners = [n for n, c in sorted(POLICIES.items()) if option in {f.name for f in dataclasses.fields(c)}]
        hint = f"did you mean {close[0]!r}? " if close else ""
        if owners and not close:
            hint = f"it is an option of {', '.join(owners)}. "
        raise ValueError(
            f"policy {name!r} has no option {option!r}; {hint}its options: {', '.join(sorted(known)) or 'none'}"
        )
