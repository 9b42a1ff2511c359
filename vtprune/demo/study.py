"""One question about one picture, answered with all visual tokens and with those that a policy keeps."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vtprune.cli.answer import pruned_trial
from vtprune.cli.error import UserError
from vtprune.cli.measure import Look, Times, Trial, look, time_trials
from vtprune.cli.overlay import seen_visuals
from vtprune.cli.prompt import make_inputs, split_prompt, unknown_words
from vtprune.cli.result import compared, plain_numbers, policy_values, pruned_numbers
from vtprune.demo.engine import Engine, check_question
from vtprune.demo.shown import Shown
from vtprune.demo.trace import Trace, selected_again, trace_of
from vtprune.demo.watch import Watched
from vtprune.models import Loaded
from vtprune.report import Report
from vtprune.video.frames import Frames

MAX_NEW_TOKENS = 32
ROUNDS = 3
"""Timed runs of each, in turn."""


@dataclass(frozen=True, eq=False)
class Study:
    """A question as a model reads it. seen: what it sees of the picture, None where nobody can tell; notes say why."""

    shown: Shown
    question: str
    parts: list
    raw: Mapping[str, Any]
    seen: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answered:
    """Both answers. values: plain numbers, as ``vtprune run --json`` has them. trace: of the pruned prefill.

    encoded: what the vision tower gave, by kind, for policies that act at several sites; {} where it cannot be reused.
    """

    study: Study
    trace: Trace
    values: dict[str, Any]
    encoded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What is being done, and how much is done before it, 0 to 1."""

    share: float
    what: str


def read_study(loaded: Loaded, shown: Shown, question: str) -> Study:
    """The prompt and the model inputs. Raises UserError for what the processor cannot read."""
    question = check_question(question)
    clips = isinstance(shown.visual, Frames)
    pictures, films = ([], [shown.visual]) if clips else ([shown.visual], [])
    parts = split_prompt(question, pictures, films, loaded.processor)
    raw = make_inputs(loaded, parts)
    notes = list(shown.notes)
    unknown = unknown_words(loaded, question)
    if unknown:
        notes.append(f"the model does not know these words: {', '.join(unknown)}")
    try:
        (seen,) = seen_visuals([shown.visual], raw, loaded.processor)
    except ValueError as error:
        seen = None
        notes.append(f"there is no drawing: {error}")
    return Study(shown, question, parts, raw, seen, tuple(notes))


def answer(loaded: Loaded, study: Study, policy_name: str, policy: Any, rounds: int = ROUNDS) -> Answered:
    """Answers, measures, and remembers what the policy saw. Raises ValueError where the policy does not fit."""
    *_, found = answering(lambda: nullcontext(loaded), study, policy_name, policy, rounds)
    return found


def answering(
    use: Callable[[], AbstractContextManager[Loaded]], study: Study, policy_name: str, policy: Any, rounds: int = ROUNDS
) -> Iterator[Stage | Answered]:
    """The same in steps: what was kept and said, then the unpruned answer beside it, last the times of both.

    use: gives the model for one step; somebody else may have it in between. Until they are known, ``unpruned`` and
    ``comparison`` of the values are None, and so are times. Whoever stops asking stops the work.
    """
    watched = Watched(policy)
    yield Stage(0.1, "answering with what the policy keeps")
    with use() as loaded:
        trial = pruned_trial(loaded, study.raw, study.parts, watched, None)
        with trial.enter() as report:
            said = look(loaded, trial.inputs, MAX_NEW_TOKENS)
            check_visual(report, loaded)
            trace = trace_of(report, watched)
            encoded = _encoded(loaded, trial.inputs) if len(trace.stops) != 1 else {}
    times = {"unpruned": Times(), "pruned": Times()}
    known = (loaded.name, study, policy_name, trace.policy, said)
    yield Answered(study, trace, numbers(*known, None, times, report), encoded)
    yield Stage(0.4, "answering with all visual tokens")
    with use() as loaded:
        plain = Trial(trial.inputs)
        bare = look(loaded, plain.inputs, MAX_NEW_TOKENS)
    yield Answered(study, trace, numbers(*known, bare, times, report), encoded)
    for i in range(rounds):
        yield Stage(0.6 + 0.4 * i / rounds, f"measuring, round {i + 1} of {rounds}")
        with use() as loaded:
            timed = pruned_trial(loaded, study.raw, study.parts, policy, None)
            # who goes first alternates
            trials = [("unpruned", plain), ("pruned", timed)][:: 1 - 2 * (i % 2)]
            for name, more in time_trials(loaded, dict(trials), MAX_NEW_TOKENS, 1).items():
                for kind in ("prefill", "token", "selector"):
                    getattr(times[name], kind).extend(getattr(more, kind))
    if rounds:
        yield Answered(study, trace, numbers(*known, bare, times, report), encoded)


def check_visual(report: Report, loaded: Loaded) -> None:
    """Raises UserError where a prompt had nothing to prune."""
    if report.last is None:
        raise UserError(
            f"the processor of {loaded.name} put no visual tokens into the prompt; there is nothing to prune"
        )


def numbers(
    model: str,
    study: Study,
    policy_name: str,
    policy: Any,
    said: Look,
    bare: Look | None,
    times: Mapping[str, Times],
    report: Report,
) -> dict[str, Any]:
    """Everything that was measured, as plain values; None for what needs the unpruned model's answer, without it."""
    return {
        "model": model,
        "shown": study.shown.name,
        "question": study.question,
        "right_answer": study.shown.right(study.question),
        "policy": policy_values(policy_name, policy),
        "unpruned": plain_numbers(bare, times["unpruned"]) if bare else None,
        "pruned": pruned_numbers(said, times["pruned"], report),
        "comparison": compared(said, bare, times["pruned"], times["unpruned"]) if bare else None,
        "runs": len(times["pruned"].prefill),
        "notes": list(study.notes),
    }


def _encoded(loaded: Loaded, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the vision tower gives for these inputs, by kind, where the model's forward takes it ready-made."""
    if "mm_encoder_outputs" not in inspect.signature(loaded.model.forward).parameters:
        return {}
    found = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        encode = getattr(loaded.model.base_model, f"get_{kind}_features", None)
        if encode is not None and pixels in inputs:
            known = inspect.signature(encode).parameters
            given = {name: value for name, value in inputs.items() if name in known}
            found[kind] = encode(**given, return_dict=True)
    return found


def reselect(engine: Engine, answered: Answered, ratio: float) -> Trace:
    """What another keep_ratio keeps: from what the policy saw, where it acts at one site, without the model.

    With several sites the decoder runs again, on what the vision tower gave before. Raises ValueError for a ratio that
    the policy refuses, UserError for a policy that has none.
    """
    policy = answered.trace.policy
    names = {one.name for one in dataclasses.fields(policy) if one.init} if dataclasses.is_dataclass(policy) else set()
    if "keep_ratio" not in names:
        raise UserError(f"{answered.values['policy']['name']} has no keep_ratio; choose a policy that has one")
    # a budget is either a share or a number
    budget = {"keep_ratio": ratio} | ({"n_keep": None} if "n_keep" in names else {})
    policy = dataclasses.replace(policy, **budget)
    if len(answered.trace.stops) == 1:
        return selected_again(answered.trace, policy)
    kind = "video" if isinstance(answered.study.shown.visual, Frames) else "image"
    with engine.use(kind) as loaded:
        return _decoded_again(loaded, answered, policy)


def _decoded_again(loaded: Loaded, answered: Answered, policy: Any) -> Trace:
    study, watched = answered.study, Watched(policy)
    trial = pruned_trial(loaded, study.raw, study.parts, watched, None)
    inputs = dict(trial.inputs)
    if answered.encoded:
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}
        inputs = {name: value for name, value in inputs.items() if name not in pixels.values()}
        inputs["mm_encoder_outputs"] = dict(answered.encoded)
    with trial.enter() as report:
        loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1)
        return trace_of(report, watched)


def seen_picture(study: Study) -> Image.Image | None:
    """What the model sees of a picture."""
    return study.seen if isinstance(study.seen, Image.Image) else None
