"""What a policy says of itself in its docstrings: its idea, its source, its options."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any

from vtprune.cli.options import option_types, type_name
from vtprune.policies.base import KEEP_RATIO_IS, keep_ratio_is

_ENTRY = re.compile(r"(\w+(?:, \w+)*):\s+(\S.*)")


@dataclass(frozen=True)
class Option:
    """One option of a policy: its name, its type as written, its default, and what its docstring says of it."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class PolicyCard:
    """A policy in words.

    title:   the first sentence of its module. summary: that of its class. source: the publication, "" for a control.
    differs: what is not as in the publication, "" if nothing is said.
    counts:  what its keep_ratio is the fraction of, "" if it has none.
    """

    name: str
    title: str
    summary: str
    source: str
    differs: str
    options: tuple[Option, ...]
    counts: str = ""


def policy_card(name: str, cls: type) -> PolicyCard:
    """The card of a registered policy."""
    text = inspect.cleandoc(getattr(sys.modules.get(cls.__module__), "__doc__", None) or "")
    title, _, rest = text.partition("\n\n")
    source, differs = split_source(rest)
    summary = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    options = policy_options(cls)
    counts = KEEP_RATIO_IS[keep_ratio_is(cls)] if any(option.name == "keep_ratio" for option in options) else ""
    return PolicyCard(name, _joined(title), _joined(summary), source, differs, options, counts)


def split_source(text: str) -> tuple[str, str]:
    """The publication that a module docstring names, and what differs from it.

    The publication ends with a line that ends with a full stop; without a year it is none.
    """
    paragraph = text.partition("\n\n")[0]
    source, mark, differs = paragraph.partition("Differs from")
    lines = source.splitlines()
    for i, line in enumerate(lines):
        if line.rstrip().endswith(".") and re.search(r"\b(19|20)\d\d\b|arXiv", " ".join(lines[: i + 1])):
            source = "\n".join(lines[: i + 1])
            break
    if not re.search(r"\b(19|20)\d\d\b|arXiv", source):
        source = ""
    return _joined(source), _joined(mark + differs)


def policy_options(cls: type) -> tuple[Option, ...]:
    """The options of a policy class, each with the line that the class, or a class it inherits from, has for it."""
    if not dataclasses.is_dataclass(cls):
        return ()
    kinds, help_of = option_types(cls), {}
    for base in cls.__mro__:
        for name, text in entries(vars(base).get("__doc__") or "").items():
            help_of.setdefault(name, text)
    options = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        options.append(Option(field.name, type_name(kinds[field.name]), default, _joined(help_of.get(field.name, ""))))
    return tuple(options)


def entries(doc: str) -> dict[str, str]:
    """The ``name: text`` entries of a docstring, with the indented lines that continue them."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith(" ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def first_line(module: str) -> str:
    """The first sentence of a module's docstring, on one line."""
    return _joined(inspect.cleandoc(sys.modules[module].__doc__ or "").partition("\n\n")[0])


def _joined(text: str) -> str:
    """On one line, with the backticks of a terminal instead of those of documentation."""
    return " ".join(text.split()).replace("``", "`")
