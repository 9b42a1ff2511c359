"""One question about one clip: both answers, what was kept of each step, and what else as many tokens could buy."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from PIL import Image

from vtprune.cli import same_budget
from vtprune.cli.answer import for_frames, pruned_trial
from vtprune.cli.clips import Clip
from vtprune.cli.inputs import Asked
from vtprune.cli.measure import Times, Trial, look, time_trials
from vtprune.cli.overlay import by_visual
from vtprune.demo.engine import Engine
from vtprune.demo.shown import Shown
from vtprune.demo.study import MAX_NEW_TOKENS, ROUNDS, Stage, check_visual, numbers, read_study
from vtprune.draw import contact_sheet
from vtprune.draw.clip_panels import Panel, clip_panels
from vtprune.draw.contact_sheet import legend_entries
from vtprune.draw.frame_bars import frame_bars
from vtprune.draw.steps import clip_sources, steps_of
from vtprune.kept import Kept
from vtprune.models import Loaded


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """A clip over time, three times: a sheet, its panels one by one with what their cells mean, and bars as SVG."""

    sheet: Image.Image
    panels: list[Panel]
    legend: list[tuple[Image.Image, str]]
    bars: str


@dataclass(frozen=True, eq=False)
class ClipAnswered:
    """Both answers about a clip.

    values: plain numbers, with ``same_budget`` as ``vtprune run --compare frames`` has it, and ``steps``: what was kept
            of each. drawn: None where the places of the tokens are unknown.
    """

    values: dict[str, Any]
    drawn: DrawnClip | None


def answer_clip(
    engine: Engine,
    shown: Shown,
    question: str,
    policy_name: str,
    policy: Any,
    *,
    options: Sequence[str] = (),
    more_frames: bool = True,
    rounds: int = ROUNDS,
) -> Iterator[Stage | ClipAnswered]:
    """Answers, measures, draws: what is being done, and last the answer. Whoever stops asking stops the work.

    options: that were said, as ``name=value``. more_frames: also the same budget on other numbers of frames.
    Raises UserError, ValueError with the command line's messages.
    """
    # the model is held inside a stage only: somebody else may ask in between
    clip = Clip(None, shown.visual, None)
    yield Stage(0.05, "reading the clip")
    with engine.use("video") as loaded:
        study = read_study(loaded, shown, question)
        asked, said = Asked(study.question, clips=[clip]), argparse.Namespace(option=list(options))
        policy = for_frames(policy, loaded, asked, said)
    yield Stage(0.1, "scoring frames")
    with engine.use("video") as loaded:
        policy = _scored(policy, loaded, shown, study.question)
    yield Stage(0.2, "answering")
    with engine.use("video") as loaded:
        trial = pruned_trial(loaded, study.raw, study.parts, policy, None)
        with trial.enter() as report:
            looked = look(loaded, trial.inputs, MAX_NEW_TOKENS)
            check_visual(report, loaded)
        bare = look(loaded, trial.inputs, MAX_NEW_TOKENS)
    rows: dict[str, same_budget.Row] = {}
    for plan in same_budget.plans(report, policy, clip) if more_frames and hasattr(policy, "keep_ratio") else ():
        yield Stage(0.4, f"answering with {plan.name}")
        with engine.use("video") as loaded:
            rows[plan.name] = _other_frames(loaded, shown, study.question, plan)
    yield Stage(0.6, "measuring")
    with engine.use("video") as loaded:
        trials = {"unpruned": Trial(trial.inputs), "pruned": trial} | {name: row.trial for name, row in rows.items()}
        times = {name: Times() for name in trials}
        if rounds:
            times = time_trials(loaded, trials, MAX_NEW_TOKENS, rounds)
        values = numbers(loaded.name, study, policy_name, report.policy, looked, bare, times, report)
    if rows:
        values["same_budget"] = same_budget.values(values, clip, report, rows, times)
    yield Stage(0.9, "drawing")
    drawn = None
    try:
        (kept,) = by_visual(report.kept(), [shown.visual])
        drawn = draw_clip(study.seen, kept, shown.visual.seconds)
    except ValueError as error:
        values["notes"].append(f"there is no drawing: {error}")
    values["steps"] = [
        {"seconds": None if isnan(one.seconds) else one.seconds, "kept": one.kept, "merged": one.merged, "of": one.of}
        for one in (drawn.panels if drawn else ())
    ]
    yield ClipAnswered(values, drawn)


def draw_clip(frames: Any, kept: Kept | list[Kept], seconds: Sequence[float]) -> DrawnClip:
    """The drawings. Raises ValueError for what has no grid, or several views."""
    panels = clip_panels(frames, kept, seconds=seconds)
    columns = ([getattr(one, name) for one in panels] for name in ("kept", "merged", "of", "time"))
    legend = legend_entries(steps_of(clip_sources(kept)))
    return DrawnClip(contact_sheet(frames, kept, seconds=seconds), panels, legend, frame_bars(*columns))


def _scored(policy: Any, loaded: Loaded, shown: Shown, question: str) -> Any:
    """The policy with scores of the frames, where it goes by them; the model itself is the scorer."""
    if not hasattr(policy, "frame_scores"):
        return policy
    if loaded.embedded:
        from vtprune.embedded.scorer import clip_scorer

        scorer = clip_scorer(loaded.model, loaded.processor)
    else:
        from vtprune.quota import YesNoScorer

        scorer = YesNoScorer(loaded.model, loaded.processor)
    return dataclasses.replace(policy, frame_scores=scorer(list(shown.visual.pixels), question, ()))


def _other_frames(loaded: Loaded, shown: Shown, question: str, plan: same_budget.Plan) -> same_budget.Row:
    """Another number of frames, for as many visual tokens."""
    other = dataclasses.replace(shown, visual=shown.again(plan.frames))
    study = read_study(loaded, other, question)
    policy = _scored(plan.policy, loaded, other, question) if plan.pruned else plan.policy
    counted = pruned_trial(loaded, study.raw, study.parts, policy, None)
    with counted.enter() as found:
        said = look(loaded, counted.inputs, MAX_NEW_TOKENS)
    # without a policy, what is timed is the model itself
    trial = counted if plan.pruned else Trial(counted.inputs)
    return same_budget.Row(plan, Clip(None, other.visual, None), trial, said, found)
