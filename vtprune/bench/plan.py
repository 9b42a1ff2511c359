"""What a run is asked to do, as a worker on any machine needs it, and the pieces that it is done in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vtprune.bench.condition import Condition


@dataclass(frozen=True)
class Plan:
    """A model, tasks and conditions. Plain values only: it is sent to workers.

    model:          a folder, "embedded-image" or "embedded-video". dtype, device, attention: as ``models.load`` takes.
    tasks:          as the command line names them, ``NAME[:option=value]...``.
    data:           the folder of the tasks' folders. folders: of tasks whose files lie elsewhere, by task.
    conditions:     the rows of the table, "full" first.
    frames:         of each clip; None for all of it.
    max_new_tokens: of an answer; None for what each task says.
    shares:         {task: {condition name: share}}: how small "same time" makes its input, found before the run.
    scorer:         rates frames for policies that go by it: "self", or a model as ``models.load`` takes it.
    threads:        of torch; None for its own choice.
    """

    model: str
    tasks: tuple[str, ...]
    conditions: tuple[Condition, ...]
    data: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)
    frames: int | None = 32
    dtype: str = "auto"
    device: str = "auto"
    attention: str | None = None
    max_new_tokens: int | None = None
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scorer: str = "self"
    threads: int | None = None


@dataclass(frozen=True)
class Unit:
    """Questions that go through the model together, under each condition in turn; the smallest piece of work.

    task: as ``Plan.tasks`` names it. questions: ids. conditions: names.
    """

    task: str
    questions: tuple[str, ...]
    conditions: tuple[str, ...]
