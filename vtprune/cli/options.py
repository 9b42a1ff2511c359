"""Policy options as text: ``layer=2`` becomes what the policy's dataclass field is typed as. Nothing is evaluated."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

from vtprune.cli.error import UserError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_EMPTY = ("none", "null")
FLOPS = ("budget", "flops")
"""An option that every policy with a keep_ratio has, whatever its own ``budget`` is."""


def split_option(text: str) -> tuple[str, str]:
    """ "layer=2" -> ("layer", "2"). Raises UserError without a name or an equals sign."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name.isidentifier():
        raise UserError(f"--option takes name=value, for instance --option layer=2; got {text!r}")
    return name, value.strip()


def parse_options(policy: type, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a policy class from ``name=value`` texts.

    A name that the policy does not have keeps its text: the policy's own error says which it has.
    Raises UserError for a name that is given twice and for a value that its type cannot hold.
    """
    kinds = option_types(policy)
    options: dict[str, Any] = {}
    for text in texts:
        name, value = split_option(text)
        if name in options:
            raise UserError(f"option {name!r} is given twice: {options[name]!r} and {value!r}; give it once")
        options[name] = parse_value(value, kinds[name], name) if name in kinds else value
    return options


def option_types(policy: type) -> dict[str, Any]:
    """The types of a policy's options by name; empty for a class that is no dataclass."""
    if not dataclasses.is_dataclass(policy):
        return {}
    hints = typing.get_type_hints(policy)
    return {field.name: hints[field.name] for field in dataclasses.fields(policy) if field.init}


def parse_value(text: str, kind: Any, name: str) -> Any:
    """A value of type ``kind`` from its text. Raises UserError that says what is allowed."""
    try:
        return _parse(text, kind)
    except ValueError:
        raise UserError(f"{name} is {in_words(kind)}; got {text!r}") from None


def _parse(text: str, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _parse_first(text, inner)
    if origin is Literal:
        return {str(value): value for value in inner}[text] if text in map(str, inner) else _refuse(text)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _parse_sequence(text, origin, inner)
    if kind is bool:
        lower = text.lower()
        return lower in _TRUE if lower in _TRUE + _FALSE else _refuse(text)
    if kind in (int, float):
        return kind(text)
    if kind in (str, Any):
        return text
    if kind is type(None):
        return None if text.lower() in _EMPTY else _refuse(text)
    return _refuse(text)


def _refuse(text: str) -> typing.NoReturn:
    raise ValueError(text)


def _parse_first(text: str, kinds: tuple) -> Any:
    """By the first of several types that can hold the text; text itself comes last."""
    for kind in sorted(kinds, key=lambda kind: kind is str):
        try:
            return _parse(text, kind)
        except ValueError:
            continue
    return _refuse(text)


def _parse_sequence(text: str, origin: type, inner: tuple) -> tuple | list:
    text = text.strip("()[] ")
    parts = [part.strip() for part in text.rstrip(",").split(",")] if text else []
    if origin is tuple and len(inner) > 0 and inner[-1] is not Ellipsis:
        if len(parts) != len(inner):
            _refuse(text)
        return tuple(_parse(part, kind) for part, kind in zip(parts, inner))
    values = [_parse(part, inner[0] if inner else str) for part in parts]
    return values if origin is list else tuple(values)


def in_words(kind: Any) -> str:
    """What values a type has: "an integer or none", "one of 'model', 'float32'"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        each = [in_words(one) for one in inner if one is not Ellipsis] or ["text"]
        return f"a list with commas ({', '.join(each)})"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words.get(kind) or type_name(kind)


def type_name(kind: Any) -> str:
    """A type as it is written: "float | None", "tuple[int, ...]"; of a choice the values: "model | float32"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join("None" if one is type(None) else type_name(one) for one in inner)
    if origin is Callable:
        return "function"
    return (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace("typing.", "").replace("collections.abc.", "")
    )


def make_policy(
    name: str,
    texts: Sequence[str] = (),
    *,
    keep_ratio: str | None = None,
    n_keep: str | None = None,
    keep_flops: str | None = None,
    seed: int | None = None,
) -> Any:
    """The policy of a command line.

    texts: of ``--option``; "budget=flops" has keep_ratio count FLOPs, see ``vtprune.wrap``. keep_ratio, n_keep and
    keep_flops: texts too, instead of those options. seed: for a policy that has one.
    Raises UserError for texts that are no values, ValueError for a name or values that the policy refuses.
    """
    from vtprune.named import SPLITS, named_policy
    from vtprune.policies.base import POLICIES

    cls, by_flops = POLICIES.get(name, object), [text for text in texts if split_option(text) == FLOPS]
    options = parse_options(cls, [text for text in texts if text not in by_flops])
    if isinstance(options.get("split"), str) and options["split"] not in SPLITS:
        options["split"] = parse_value(options["split"], tuple[float, ...], "split")
    given = {"keep_ratio": keep_ratio, "n_keep": n_keep, "keep_flops": keep_flops}
    said = {option: text for option, text in given.items() if text is not None}
    if len(said) > 1:
        names = " or ".join(f"--{option.replace('_', '-')}" for option in said)
        raise UserError(f"give {names}, not both; got {' and '.join(said.values())}")
    for option, text in said.items():
        if option in options:
            raise UserError(f"{option} is given twice, as an argument and as --option; give it once")
        options[option] = _number(option, text)
    if seed is not None and "seed" in option_types(cls):
        options.setdefault("seed", seed)
    return named_policy(name, options, by_flops=bool(by_flops))


def _number(option: str, text: str) -> float | int:
    what = {
        "keep_ratio": (float, "the fraction of visual tokens KEPT, in (0, 1]"),
        "n_keep": (int, "the number of visual tokens kept, an integer of 1 or more"),
        "keep_flops": (float, "the fraction of the unpruned prompt's FLOPs in the decoder's layers KEPT, in (0, 1]"),
    }
    kind, meaning = what[option]
    try:
        # a whole number stays one, so that the error of a wrong ratio shows what was typed
        return int(text) if text.lstrip("+-").isdecimal() else kind(text)
    except ValueError:
        raise UserError(f"{option} is {meaning}; got {text!r}") from None
