"""Whether what a table of ``tests.leaned`` says is still so, read off transformers' classes; nothing is built."""

from __future__ import annotations

import dis
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from types import CellType, CodeType, ModuleType
from typing import Any

from tests.leaned import HAS, SAYS, TAKES, Row
from tests.release import RELEASE

NEWEST = (5, 23)
"""Models that an older release lacks have not moved."""


def moved(table: Iterable[Row]) -> list[str]:
    """A sentence for each name that is not where the table says, in the order of the table."""
    found: list[str] = []
    # a class may have been patched since it was read
    _stored.cache_clear()
    for who, how, where, names in table:
        try:
            missing = [name for name in names.split() if not any(_there(how, where, one) for one in name.split("|"))]
        except _Absent as absent:
            if not absent.model or RELEASE >= NEWEST:
                found.append(f"transformers {absent.where} is gone (used by vtprune/{who})")
            continue
        found += [f"transformers {where} no longer {how} {name} (used by vtprune/{who})" for name in missing]
    return found


class _Absent(Exception):
    """A module, class or function is not there. model: whether it is the module of a model."""

    def __init__(self, where: str, model: bool = False):
        self.where, self.model = where, model


def _there(how: str, where: str, name: str) -> bool:
    thing = _find(where)
    if how == HAS:
        fields = (getattr(one, "__annotations__", {}) for one in getattr(thing, "__mro__", ()))
        return hasattr(thing, name) or any(name in some for some in fields)
    if how == TAKES:
        return name in inspect.signature(thing).parameters
    if how == SAYS:
        return name in _said(inspect.unwrap(thing).__code__)
    return hasattr(thing, name) or any(name in _stored(one) for one in thing.__mro__)


@cache
def _said(code: CodeType) -> frozenset[str]:
    """Names and constants of compiled code, those of functions inside it and the names of arguments it gives too."""
    said = set(code.co_names)
    for constant in code.co_consts:
        said |= _said(constant) if isinstance(constant, CodeType) else set()
        said |= {one for one in (constant if isinstance(constant, tuple) else (constant,)) if isinstance(one, str)}
    return frozenset(said)


@cache
def _stored(cls: type) -> frozenset[str]:
    """Attributes that the methods of a class of transformers set; its source would take longer to read."""
    if not cls.__module__.startswith("transformers."):
        return frozenset()
    methods = [method for method in vars(cls).values() if inspect.isfunction(method)]
    # what decorators wrap is among what their functions close over
    for method in methods:
        held = [cell.cell_contents for cell in method.__closure__ or () if cell != CellType()]
        methods += [one for one in held if inspect.isfunction(one) and one not in methods]
    steps = (step for one in methods for step in dis.get_instructions(one))
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


def _find(where: str) -> Any:
    """What stands there; of classes joined by "|" the first that does."""
    file, _, path = where.partition(":")
    thing: Any = _module(file)
    for step in filter(None, path.split(".")):
        one = next((one for one in step.split("|") if hasattr(thing, one)), None)
        if one is None:
            raise _Absent(where)
        thing = getattr(thing, one)
    return thing


@cache
def _module(file: str) -> ModuleType:
    """A module below transformers, see above."""
    path = file
    if file.startswith("/"):
        model, _, kind = file[1:].partition("/")
        path = f"models.{model}.{kind or 'modeling'}_{model}"
    try:
        return importlib.import_module(f"transformers.{path}".rstrip("."))
    except ModuleNotFoundError:
        raise _Absent(path, file.startswith("/")) from None
