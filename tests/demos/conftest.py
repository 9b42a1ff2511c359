"""What the demo's tests share: one engine with the small models, and a question about the bundled picture."""

import pytest

from vtprune.demo.controls import read_policy, suggested
from vtprune.demo.engine import Engine
from vtprune.demo.shown import example_picture
from vtprune.demo.study import answer, read_study


@pytest.fixture(scope="session")
def engine():
    return Engine(device="cpu")


@pytest.fixture(scope="session")
def asked(engine):
    """``asked("fastv", 0.25)``: what the engine answered about the bundled picture, without times."""

    def ask(name, ratio, options=None):
        shown = example_picture("bundled")
        text = suggested(engine.names["image"], name) if options is None else options
        with engine.use("image") as loaded:
            study = read_study(loaded, shown, shown.questions[0][0])
            return answer(loaded, study, name, read_policy(name, ratio, text), rounds=0)

    return ask
