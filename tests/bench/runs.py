"""Small runs without a model, for tests: a plan, its identity, and a worker whose answers can be told in advance."""

import time
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace

from vtprune.bench.condition import Condition
from vtprune.bench.identity import Identity
from vtprune.bench.plan import Plan
from vtprune.bench.units import Entry

CONDITIONS = (
    Condition("full"),
    Condition("policy", "fastv", ("layer=3",), 0.25),
    Condition("random", "random", (), 0.25, 1),
)
NAMES = ("full", "fastv:layer=3@0.25", "random@0.25#1")

PLAN = Plan("embedded-image", ("letters", "clips"), CONDITIONS)


def identity(**changes) -> Identity:
    """Of ``PLAN``; changes replace whole fields."""
    task = {
        "name": "letters",
        "revision": "0123",
        "questions": 3,
        "source": "here",
        "metric": "accuracy",
        "visual": "image",
    }
    fields = {
        "model": {
            "name": "a",
            "model_type": "llava",
            "parameters": 5,
            "dtype": "float32",
            "device": "cpu",
            "weights": "ab",
        },
        "tasks": {"letters": task, "clips": {**task, "name": "clips", "visual": "video"}},
        "conditions": CONDITIONS,
        "settings": {"frames": 16, "max_new_tokens": None, "batch": 2},
        "code": {"version": "1", "commit": None, "digest": "c0de"},
        "versions": {"torch": "2.13", "python": "3.11.1"},
        "command": "vtprune bench",
    }
    return Identity(**{**fields, **changes})


def asked(n: int, m: int = 0) -> dict[str, list[Entry]]:
    """``n`` questions about pictures and ``m`` about clips."""
    pictures = [Entry(f"q{i}", frozenset({"image"})) for i in range(n)]
    clips = [Entry(f"c{i}", frozenset({"video"})) for i in range(m)]
    return {"letters": pictures} | ({"clips": clips} if m else {})


def row(task: str, question: str, condition: str, error: str | None = None, **more) -> dict:
    """A row as short as can be; its answer follows from its names alone."""
    said = sha256(f"{task} {question} {condition}".encode()).hexdigest()[:4]
    names = {"task": task, "question": question, "condition": condition}
    return {**names, "raw": None if error else said, "error": error, **more}


@dataclass
class StandIn:
    """A worker that waits a little for each row. fails: questions that it fails at. units: what it was given."""

    plan: Plan
    wait: float = 0.0
    fails: tuple[str, ...] = ()

    def __post_init__(self):
        self.units = []

    def do(self, unit) -> list[dict]:
        self.units.append(unit)
        rows = []
        for name in unit.conditions:
            for question in unit.questions:
                time.sleep(self.wait)
                rows.append(row(unit.task, question, name, "no such file" if question in self.fails else None))
        return rows


def stand_in(made: list | None = None, **more):
    """Makes ``StandIn`` of a plan, and puts it into ``made``."""

    def make(plan: Plan) -> StandIn:
        worker = StandIn(plan, **more)
        if made is not None:
            made.append(worker)
        return worker

    return make


def a_terminal(stream) -> SimpleNamespace:
    """The stream, as if somebody were looking at it."""
    return SimpleNamespace(write=stream.write, flush=stream.flush, isatty=lambda: True, encoding="utf-8")
