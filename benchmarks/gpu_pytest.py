"""As much of pytest as the kernels' tests use, so that they also run on machines without it.

Marks, parameters, fixtures, ``raises``, ``approx`` and ``monkeypatch``; what is not here skips a test or fails it, and
says so. ``benchmarks.gpu_tests`` puts it in the place of pytest, in a process of its own.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path


class Skipped(Exception):
    """A test, or a module, that does not apply here."""


def skip(reason: str = "", **_) -> None:
    raise Skipped(reason)


def importorskip(name: str, reason: str | None = None) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(reason or str(error)) from error


class approx:  # noqa: N801, pytest's own name
    """Equal to a number, or to numbers in lists, but for one part in a million."""

    def __init__(self, expected, rel: float | None = None, abs: float | None = None):
        self.expected, self.rel, self.abs = expected, 1e-6 if rel is None else rel, 1e-12 if abs is None else abs

    def __eq__(self, other) -> bool:
        if isinstance(self.expected, Sequence):
            pairs = zip(self.expected, other)
            return len(self.expected) == len(other) and all(approx(e, self.rel, self.abs) == o for e, o in pairs)
        if isinstance(self.expected, approx):
            return self.expected == other
        return abs(self.expected - other) <= max(self.abs, self.rel * abs(self.expected))

    def __repr__(self) -> str:
        return f"approx({self.expected})"


class raises:  # noqa: N801, pytest's own name
    """The error must come, and its text must match."""

    def __init__(self, kinds, match: str = ""):
        self.kinds, self.match, self.value = kinds, match, None

    def __enter__(self) -> "raises":
        return self

    def __exit__(self, kind, error, _) -> bool:
        if kind is None:
            raise AssertionError(f"did not raise {self.kinds}")
        if not issubclass(kind, self.kinds):
            return False
        self.value = error
        if not re.search(self.match, str(error)):
            raise AssertionError(f"{self.match!r} is not in {str(error)!r}")
        return True


class Mark:
    """One mark: called with a function, it is noted there."""

    def __init__(self, name: str, args: tuple = (), options: Mapping = types.MappingProxyType({})):
        self.name, self.args, self.options = name, args, options

    def __call__(self, *args, **options):
        if len(args) == 1 and not options and inspect.isfunction(args[0]):
            args[0].marks = [*getattr(args[0], "marks", []), self]
            return args[0]
        return Mark(self.name, args, options)


class _Marks:
    def __getattr__(self, name: str) -> Mark:
        return Mark(name)


mark = _Marks()


class param:  # noqa: N801, pytest's own name
    """One set of values, with marks of its own."""

    def __init__(self, *values, id: str | None = None, marks=()):
        self.values, self.marks = values, marks if isinstance(marks, Sequence) else [marks]


def fixture(function: Callable | None = None, **options):
    if function is None:
        return lambda function: fixture(function, **options)
    function.fixture_options = options
    return function


class MonkeyPatch:
    """Changes that are taken back."""

    def __init__(self):
        self.undo = ExitStack()

    def setattr(self, target, name, *value, raising: bool = True) -> None:
        if isinstance(target, str):
            path, _, attribute = target.rpartition(".")
            target, name, value = _resolve(path), attribute, (name,)
        before = getattr(target, name)
        self.undo.callback(setattr, target, name, before)
        setattr(target, name, *value)

    def setitem(self, mapping, key, value) -> None:
        there, before = key in mapping, mapping.get(key)
        self.undo.callback(mapping.__setitem__, key, before) if there else self.undo.callback(mapping.pop, key, None)
        mapping[key] = value

    def delitem(self, mapping, key, raising: bool = True) -> None:
        if key in mapping:
            self.undo.callback(mapping.__setitem__, key, mapping.pop(key))

    def setenv(self, name: str, value: str) -> None:
        self.setitem(os.environ, name, str(value))

    def delenv(self, name: str, raising: bool = True) -> None:
        self.delitem(os.environ, name)


def _resolve(path: str):
    """A module, or what is in one, by its dotted name."""
    try:
        return importlib.import_module(path)
    except ImportError:
        parent, _, name = path.rpartition(".")
        return getattr(_resolve(parent), name)


# ------------------------------------------------------------------------------------------------------- running


def marks_of(function: Callable) -> set[str]:
    return {mark.name for mark in getattr(function, "marks", [])}


def cases(function: Callable) -> Iterator[tuple[str, dict, list[Mark]]]:
    """The name of each case, its parameters, and the marks that the function and these have."""
    marks = getattr(function, "marks", [])
    axes = [mark.args[:2] for mark in marks if mark.name == "parametrize"]
    for combination in itertools.product(*(list(values) for _, values in axes)):
        chosen, more = {}, []
        for (names, _), value in zip(axes, combination):
            names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
            if isinstance(value, param):
                more += value.marks
                value = value.values if len(names) > 1 else value.values[0]
            chosen.update(zip(names, value) if len(names) > 1 else [(names[0], value)])
        label = ", ".join(getattr(v, "__name__", None) or re.sub(r"\s+", " ", repr(v))[:40] for v in chosen.values())
        yield function.__name__ + (f"[{label}]" if label else ""), chosen, [*marks, *more]


def run_case(function: Callable, chosen: Mapping, marks: Sequence[Mark], fixtures: Mapping[str, Callable]) -> None:
    """Calls a test with its parameters and fixtures. Raises Skipped, or what the test raises."""
    for one in marks:
        if one.name in ("skip", "xfail") or (one.name == "skipif" and one.args[0]):
            raise Skipped(one.options.get("reason", one.name))
    with ExitStack() as stack:
        made: dict[str, object] = {}
        for name, maker in fixtures.items():
            if maker.fixture_options.get("autouse"):
                _make(name, fixtures, made, stack)
        wanted = [name for name in inspect.signature(function).parameters if name not in chosen]
        function(**chosen, **{name: _make(name, fixtures, made, stack) for name in wanted})


def _make(name: str, fixtures: Mapping[str, Callable], made: dict[str, object], stack: ExitStack):
    """The value of a fixture, made once for each test and taken back after it."""
    if name in made:
        return made[name]
    if name == "monkeypatch":
        patch = MonkeyPatch()
        stack.callback(patch.undo.close)
        made[name] = patch
    elif name == "tmp_path":
        made[name] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    elif name not in fixtures:
        raise Skipped(f"needs the fixture {name}")
    else:
        maker = fixtures[name]
        found = maker(*(_make(wanted, fixtures, made, stack) for wanted in inspect.signature(maker).parameters))
        if inspect.isgenerator(found):
            stack.callback(next, found, None)
            found = next(found)
        made[name] = found
    return made[name]


def install() -> None:
    """From now on ``import pytest`` gives this module; ``import hypothesis`` a stand-in, where it is not installed."""
    sys.modules["pytest"] = sys.modules[__name__]
    if importlib.util.find_spec("hypothesis") is None:
        sys.modules["hypothesis"] = stand_in = types.ModuleType("hypothesis")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("hypothesis", None)  # others ask whether it is there
        stand_in.given = lambda *args, **options: lambda function: mark.skip(reason="needs hypothesis")(_bare(function))
        stand_in.settings = lambda *args, **options: lambda function: function
        stand_in.strategies = types.ModuleType("hypothesis.strategies")
        stand_in.strategies.__getattr__ = _Anything().__getattr__
        sys.modules["hypothesis.strategies"] = stand_in.strategies
    else:
        hypothesis = importlib.import_module("hypothesis")
        # as under pytest: the same examples in every run, none of them timed, none remembered
        hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
        hypothesis.settings.load_profile("repeatable")


class _Anything:
    """Stands in for strategies, which nobody draws from."""

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **options) -> "_Anything":
        return self

    def __or__(self, other) -> "_Anything":
        return self


def _bare(function: Callable) -> Callable:
    """Of the same name, without parameters: nobody would fill them."""

    def test() -> None:
        raise Skipped("needs hypothesis")

    test.__name__ = function.__name__
    return test
