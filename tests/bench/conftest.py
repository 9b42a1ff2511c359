"""A worker with the embedded image model and a task whose questions a test chooses."""

import pytest

from tests.bench.scenes_task import Scenes
from vtprune.bench.condition import Condition
from vtprune.bench.plan import Plan, Unit
from vtprune.bench.work import Opened, Worker


class Bench:
    """One loaded model; ``rows`` answers given questions under given conditions."""

    def __init__(self):
        self.worker = Worker(Plan("embedded-image", ("scenes",), ()))

    def open(self, questions, conditions=()):
        """The worker, which knows these questions and conditions."""
        self.worker.opened["scenes"] = Opened(Scenes(asked=tuple(questions)), tuple(questions))
        self.worker.conditions = {one.name: one for one in conditions}
        return self.worker

    def rows(self, questions, conditions, ids=None):
        worker = self.open(questions, conditions)
        ids = tuple(question.id for question in questions) if ids is None else ids
        return worker.do(Unit("scenes", ids, tuple(one.name for one in conditions)))


@pytest.fixture(scope="session")
def bench():
    return Bench()


FULL = Condition("full")
"""The unpruned model."""
