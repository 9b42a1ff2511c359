"""Controls for a policy's options, made of its fields: names, types, ranges, defaults and one-line help."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vtprune.cli.docs import policy_options
from vtprune.cli.error import UserError, did_you_mean
from vtprune.cli.options import make_policy, option_types, split_option
from vtprune.cli.policies import shown
from vtprune.policies.base import POLICIES

WITHHELD = frozenset({"keep_ratio", "n_keep", "scorer", "frame_scores"})
"""Options without a control: the budget has a slider, files are not for a page to name, scores are computed."""

DEFAULT = "default"
"""The choice that leaves an option to the model."""

SUGGESTED = {("embedded-image", "fastv"): "layer=3"}
"""Options that suit a model that ships: its question reaches the picture in layer 2, so attention tells from there."""

MAX_OPTIONS = 2_000
"""Letters of all options as text."""


@dataclass(frozen=True)
class Control:
    """One option. minimum, maximum: the last values that the policy itself accepts, None if far from 0."""

    name: str
    kind: Literal["switch", "choice", "whole", "number", "text"]
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    def text(self, value: Any) -> str | None:
        """``name=value`` for the command line; None where the value is the default, or nothing."""
        if value is None or value == self.default or value == DEFAULT or shown(value) == shown(self.default):
            return None
        if self.kind == "text" and not str(value).strip():
            return None
        if self.kind == "switch":
            return f"{self.name}={'true' if value else 'false'}"
        if self.kind == "whole" and float(value).is_integer():
            value = int(value)
        return f"{self.name}={shown(value)}"


def controls_of(name: str) -> tuple[Control, ...]:
    """The controls of a registered policy."""
    cls, found = POLICIES[name], []
    kinds = option_types(cls)
    for option in policy_options(cls):
        if option.name not in WITHHELD:
            control = _control(cls, option, kinds[option.name])
            found += [control] if control else []
    return tuple(found)


def _control(cls: type, option: Any, kind: Any) -> Control | None:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    parts = [kind] if origin in (None, Literal) or not _is_union(kind) else list(inner)
    literal = next((part for part in parts if typing.get_origin(part) is Literal), None)
    same = {"name": option.name, "default": option.default, "help": option.help}
    if literal is not None or bool in parts and type(None) in parts:
        values = typing.get_args(literal) if literal is not None else ("true", "false")
        choices = tuple(map(str, values))
        return Control(kind="choice", choices=choices if option.default is not None else (DEFAULT, *choices), **same)
    if bool in parts:
        return Control(kind="switch", **same)
    for type_, word, lows, highs in ((int, "whole", (-1, 0, 1, 2), ()), (float, "number", (-1.0, 0.0), (1.0,))):
        if type_ in parts:
            low = next((v for v in lows if _accepts(cls, option.name, v)), None)
            low = None if low is not None and _accepts(cls, option.name, low - 1) else low
            ends = [v for v in highs if _accepts(cls, option.name, v) and not _accepts(cls, option.name, v + 1)]
            high = ends[0] if ends else None
            return Control(kind=word, minimum=low, maximum=high, **same)
    sequence = any(typing.get_origin(part) in (tuple, list) for part in parts)
    return Control(kind="text", **same) if sequence or str in parts else None


def _is_union(kind: Any) -> bool:
    import types

    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _accepts(cls: type, name: str, value: Any) -> bool:
    """Whether the policy takes this value, which is how ranges are known."""
    try:
        cls(**{name: value})
    except (ValueError, TypeError):
        return False
    return True


def options_text(name: str, values: Sequence[Any]) -> str:
    """A line ``name=value`` for each control that was moved from its default."""
    texts = [control.text(value) for control, value in zip(controls_of(name), values, strict=True)]
    return "\n".join(text for text in texts if text)


def suggested(model: str, policy: str) -> str:
    """Options text that suits a model and a policy; "" for the policy's own defaults."""
    return SUGGESTED.get((model, policy), "")


def has_ratio(name: str) -> bool:
    """Whether a policy has a keep_ratio. Raises UserError for a policy that does not exist."""
    if name not in POLICIES:
        hint = did_you_mean(str(name), POLICIES)
        raise UserError(f"unknown policy {str(name)!r}; {hint}known: {', '.join(sorted(POLICIES))}")
    return "keep_ratio" in {field.name for field in dataclasses.fields(POLICIES[name])}


LOWEST_RATIO = 0.02
"""That a page offers."""


def lowest_ratio(name: str) -> float:
    """The lowest keep_ratio, in hundredths, that the policy takes before it has seen a model."""
    cls = POLICIES[name]
    hundredths = range(round(100 * LOWEST_RATIO), 100)
    return next((n / 100 for n in hundredths if _accepts(cls, "keep_ratio", n / 100)), 1.0)


def read_options(name: str, text: str | None) -> list[str]:
    """The lines of an options text. Raises UserError for options that the page does not offer."""
    text = text or ""
    if len(text) > MAX_OPTIONS:
        raise UserError(f"options have at most {MAX_OPTIONS:,} letters; got {len(text):,}")
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    offered = {control.name for control in controls_of(name)}
    for one in texts:
        option, _ = split_option(one)
        if option in option_types(POLICIES[name]) and option not in offered:
            raise UserError(f"{option} has no place among the options here; {_instead(option)}")
    return texts


def _instead(option: str) -> str:
    if option in ("keep_ratio", "n_keep"):
        return "move the slider"
    return "use vtprune run --option, or vtprune.wrap in Python"


def read_policy(name: str, ratio: Any, options: str | None) -> Any:
    """The policy that a page asks for. Raises UserError, ValueError with the command line's messages."""
    wanted = has_ratio(name)
    if wanted and (isinstance(ratio, bool) or not isinstance(ratio, (int, float))):
        raise UserError(f"keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got {ratio!r}")
    return make_policy(name, read_options(name, options), keep_ratio=repr(ratio) if wanted else None, seed=None)
