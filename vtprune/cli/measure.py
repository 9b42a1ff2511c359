"""What ``vtprune run`` measures: answers, next-token distributions, bytes of the cache, and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from vtprune.clock import Ticks
from vtprune.models import Loaded
from vtprune.report import Report, measured_bytes

FEWEST, MOST, SECONDS = 3, 9, 3.0
"""Timed rounds: at least, at most, and for how long new ones are begun."""


@dataclass(frozen=True)
class Look:
    """What a model says to a prompt.

    answer: text. logits: (V,) float64, of the first new token. kv_bytes: keys and values after the prefill, measured.
    """

    answer: str
    logits: Tensor
    kv_bytes: int | None


@dataclass
class Times:
    """Milliseconds by timed run.

    prefill: from the call to the first token: vision tower, projector, selecting, decoder. token: each later token.
    selector: signals and selecting, part of ``prefill``.
    """

    prefill: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    selector: list[float] = field(default_factory=list)


def look(loaded: Loaded, inputs: Mapping, max_new_tokens: int) -> Look:
    """Greedy generation. Its first run is not timed and so warms the model up."""
    first = _generate(loaded, inputs, 1, return_dict_in_generate=True, output_logits=True)
    new = _generate(loaded, inputs, max_new_tokens)[0, inputs["input_ids"].shape[1] :]
    answer = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Look(answer, first.logits[0][0].double().cpu(), measured_bytes(first.past_key_values))


def _generate(loaded: Loaded, inputs: Mapping, n: int, **more):
    return loaded.model.generate(**inputs, max_new_tokens=n, do_sample=False, num_beams=1, use_cache=True, **more)


def agreement(one: Tensor, other: Tensor) -> float | None:
    """1 minus the total variation distance of two next-token distributions, from logits (V,); 1 if they are equal.

    None where a logit is not a number.
    """
    value = 1 - total_variation(one, other)
    return value if value == value else None


def total_variation(one: Tensor, other: Tensor) -> float:
    """The distance of two next-token distributions, from logits (V,): 0 if they are equal, 1 with nothing in common."""
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    return float((p - q).abs().sum()) / 2


def timed_tokens(max_new_tokens: int) -> int:
    """Tokens that a timed run generates, whatever the answer's length: 2 to 8."""
    return max(2, min(max_new_tokens, 8))


@dataclass(frozen=True)
class Trial:
    """A prompt, and the state of the model that it is answered in.

    inputs: of the model. enter: gives a context that holds the model in that state, with a report if it is pruned.
    """

    inputs: Mapping
    enter: Callable[[], AbstractContextManager[Report | None]] = nullcontext


def time_trials(
    loaded: Loaded, trials: Mapping[str, Trial], max_new_tokens: int, rounds: int | None = None
) -> dict[str, Times]:
    """Times of each trial, run in turn so that a machine that slows down slows all of them.

    rounds: how many; if None, 3 or more until 3 seconds are over, 9 at most.
    """
    times = {name: Times() for name in trials}
    started, tokens = time.perf_counter(), timed_tokens(max_new_tokens)
    for i in range(MOST if rounds is None else rounds):
        if rounds is None and i >= FEWEST and time.perf_counter() - started > SECONDS:
            break
        # who goes first alternates too
        for name in list(trials)[:: 1 - 2 * (i % 2)]:
            with trials[name].enter() as report:
                _time_once(loaded, trials[name].inputs, tokens, times[name])
                if report is not None:
                    times[name].selector.append(report.milliseconds)
    return times


def _time_once(loaded: Loaded, inputs: Mapping, tokens: int, times: Times) -> None:
    clock = Ticks(loaded.model.device)
    _generate(loaded, inputs, tokens, min_new_tokens=tokens, stopping_criteria=[clock])
    start, first, *later = clock.seconds
    times.prefill.append(1000 * (first - start))
    times.token.append(1000 * (later[-1] - first) / len(later))


def middle(values: list[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


def middle_ratio(values: list[float], others: list[float]) -> float | None:
    """The median over rounds of value / other; None of nothing."""
    return middle([value / other for value, other in zip(values, others, strict=True)])
