"""Asks a model, pruned and unpruned, and measures both."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from vtprune.api import pruned
from vtprune.chat import floats_as
from vtprune.cli import same_budget
from vtprune.cli.console import note, status, still
from vtprune.cli.error import UserError
from vtprune.cli.inputs import Asked, is_example
from vtprune.cli.measure import Look, Times, Trial, look, time_trials, timed_tokens
from vtprune.cli.prompt import Part, make_inputs, split_prompt, unknown_words
from vtprune.cli.quiet import out_of_memory, quiet_transformers
from vtprune.cli.result import compared, plain_numbers, policy_values, pruned_numbers
from vtprune.models import Loaded, load
from vtprune.report import Report
from vtprune.seconds import frame_times
from vtprune.video.frames import Frames
from vtprune.video.inputs import seconds_of, takes_videos

UNPRUNED, PRUNED = "unpruned", "pruned"


def answer(arguments: argparse.Namespace, policy: Any, asked: Asked) -> tuple[dict[str, Any], Callable | None]:
    """The result as plain values, and a function that draws the overlay (None if none is wanted)."""
    with quiet_transformers(), status(f"loading {arguments.model}"):
        kinds = {"dtype": arguments.dtype, "device": arguments.device, "attention": arguments.attn}
        loaded = load(arguments.model, **kinds)
    unknown = unknown_words(loaded, asked.prompt)
    if unknown:
        note(f"the model does not know these words: {', '.join(unknown)}")
    policy = for_frames(policy, loaded, asked, arguments)
    parts, raw = _read_by(loaded, asked.prompt, asked)
    more = functools.partial(pruned_trial, loaded, wrapping=wrapping(arguments))
    trials = {PRUNED: more(raw, parts, policy)}
    if wants(arguments) != "no":
        trials = {UNPRUNED: Trial(trials[PRUNED].inputs), **trials}
    # entered for a moment, so that what cannot be wrapped is known before minutes of work
    with trials[PRUNED].enter():
        pass
    torch.manual_seed(arguments.seed)
    with quiet_transformers(), out_of_memory(loaded.model.device):
        looks, report = _look(loaded, trials, arguments)
        rows: dict[str, same_budget.Row] = {}
        if wants(arguments) == "frames":
            rows = _other_frames(arguments, loaded, policy, asked, report)
            trials |= {name: row.trial for name, row in rows.items()}
        times = {name: Times() for name in trials}
        if arguments.runs != 0:
            with still("measuring"):
                times = time_trials(loaded, trials, arguments.max_new_tokens, arguments.runs)
    result = _result(arguments, loaded, asked, looks, times, report)
    if rows:
        result["same_budget"] = same_budget.values(result, asked.clips[0], report, rows, times)
    visuals = [part for part in parts if not isinstance(part, str)]
    return result, functools.partial(_draw, arguments, report, visuals, raw, loaded) if arguments.overlay else None


def wants(arguments: argparse.Namespace) -> str:
    """What is compared with: "no", "unpruned" or "frames"; what ships is compared unless nobody wants it."""
    return arguments.compare or ("unpruned" if is_example(arguments) else "no")


def for_frames(policy: Any, loaded: Loaded, asked: Asked, arguments: argparse.Namespace) -> Any:
    """The policy for a model that gets frames as images: what was not said is chosen so that they are one clip."""
    if not asked.clips or takes_videos(loaded.processor):
        return policy
    said = {text.partition("=")[0].strip().replace("-", "_") for text in arguments.option}
    fitting = {"budget": "prompt"} | ({} if asked.pictures else {"images": "frames"})
    known = {field.name for field in dataclasses.fields(policy)} if dataclasses.is_dataclass(policy) else set()
    changes = {name: value for name, value in fitting.items() if name in known - said}
    options = "".join(f", {name}={value}" for name, value in changes.items())
    note(f"the processor of {loaded.name} takes no videos; each frame goes in as an image{options}")
    return dataclasses.replace(policy, **changes)


def wrapping(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``vtprune.wrap`` is told beside the policy."""
    return {name: getattr(arguments, name) for name in ("positions", "sinks", "sink_detector")}


def pruned_trial(loaded: Loaded, raw, parts: list[Part], policy: Any, wrapping: Mapping[str, Any] | None) -> Trial:
    """A prompt that the model answers with a policy, wrapped as it says, and with the times of its frames."""
    visuals = [part for part in parts if not isinstance(part, str)]
    seconds = seconds_of(visuals, raw)

    @contextmanager
    def enter() -> Iterator[Report]:
        with pruned(loaded.model, policy, **(wrapping or {})) as report:
            with nullcontext() if seconds is None else frame_times(seconds):
                yield report

    return Trial(placed(raw, loaded.model), enter)


def placed(raw: Mapping[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Inputs where the model is, pixels in its dtype."""
    there = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in raw.items()}
    return floats_as(there, model)


def _read_by(loaded: Loaded, prompt: str, asked: Asked, frames: list[Frames] | None = None) -> tuple[list[Part], Any]:
    """The parts of the prompt, and what the processor makes of them, on the CPU."""
    frames = [clip.frames for clip in asked.clips] if frames is None else frames
    parts = split_prompt(prompt, asked.pictures, frames, loaded.processor)
    return parts, make_inputs(loaded, parts)


def _look(loaded: Loaded, trials: Mapping[str, Trial], arguments: argparse.Namespace) -> tuple[dict[str, Look], Report]:
    """What the model says in each trial, and the report of the pruned one."""
    looks, report = {}, None
    for name, trial in trials.items():
        with status(f"generating, {name}"), trial.enter() as found:
            looks[name] = look(loaded, trial.inputs, arguments.max_new_tokens)
            report = found or report
    if report.last is None:
        raise UserError(
            f"the processor of {arguments.model} put no visual tokens into the prompt; there is nothing to prune"
        )
    return looks, report


def _other_frames(
    arguments: argparse.Namespace, loaded: Loaded, policy: Any, asked: Asked, report: Report
) -> dict[str, same_budget.Row]:
    """The same question about fewer frames unpruned, and about more frames pruned, at the cost of what was kept."""
    rows = {}
    for plan in same_budget.plans(report, policy, asked.clips[0]):
        clip = same_budget.read_again(asked.clips[0], plan.frames, arguments.partial)
        parts, raw = _read_by(loaded, asked.prompt, asked, [clip.frames])
        counted = pruned_trial(loaded, raw, parts, plan.policy, wrapping(arguments) if plan.pruned else None)
        with status(f"generating, {plan.name}"), counted.enter() as found:
            said = look(loaded, counted.inputs, arguments.max_new_tokens)
        # without a policy, what is timed is the model itself
        trial = counted if plan.pruned else Trial(counted.inputs)
        rows[plan.name] = same_budget.Row(plan, clip, trial, said, found)
    return rows


def _result(arguments, loaded: Loaded, asked: Asked, looks, times, report: Report) -> dict[str, Any]:
    from vtprune import __version__

    model, plain = loaded.model, looks.get(UNPRUNED)
    pair = (looks[PRUNED], plain, times[PRUNED], times[UNPRUNED]) if plain else None
    return {
        "vtprune": __version__,
        "model": {
            "name": loaded.name,
            "model_type": loaded.model_type,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "policy": policy_values(arguments.policy, report.policy),
        "positions": report.positions,
        **asked.values(),
        "right_answer": asked.right if loaded.embedded else None,
        "unpruned": plain_numbers(plain, times[UNPRUNED]) if plain else None,
        "pruned": pruned_numbers(looks[PRUNED], times[PRUNED], report),
        "comparison": compared(*pair) if pair else None,
        "same_budget": None,
        "runs": len(times[PRUNED].prefill),
        "timed_tokens": timed_tokens(arguments.max_new_tokens),
        "overlay": arguments.overlay,
    }


def _draw(arguments: argparse.Namespace, report: Report, visuals: list, inputs, loaded: Loaded) -> None:
    from vtprune.cli.overlay import draw_report, save

    save(draw_report(report, visuals, inputs, loaded.processor, arguments.policy), arguments.overlay)
