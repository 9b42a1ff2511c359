"""What a decode step pays for being hooked: the hooks by themselves, and steps of a model so narrow that it shows."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import vtprune
from benchmarks.engine_model import SHAPES, Steps, build, prefill, prompt, short_prompt, twin
from benchmarks.engine_time import WALL, Bound, clock_of, hook_times, in_turns, spread

STEP = Bound("<=", 5.0)
"""Microseconds that a decode step may take longer for each layer with a hook."""
SIDE, TEXT = 8, 16
BLOCKS, BURST = 6, 5


@dataclass(frozen=True)
class Case:
    """A model and a batch. images: of each sample; unequal ones are padded on the left. policy: None leaves it alone.

    empty: puts a hook that does nothing on every layer, for the price of being hooked at all.
    """

    name: str
    images: tuple[int, ...]
    policy: str | None = None
    options: dict = field(default_factory=dict)
    empty: bool = False


CASES = (
    Case("control: not wrapped", (2,)),
    Case("control: empty hooks", (2,), empty=True),
    Case("one sample, all kept", (2,), "none"),
    Case("one sample", (2,), "random", {"keep_ratio": 0.25}),
    Case("one sample, compact positions", (2,), "random", {"keep_ratio": 0.25, "positions": "compact"}),
    Case("padded batch, all kept", (1, 2), "none"),
    Case("ragged batch", (1, 2), "random", {"keep_ratio": 0.25}),
    Case("ragged batch, compact positions", (1, 2), "random", {"keep_ratio": 0.25, "positions": "compact"}),
)


def hook_rows(
    rounds: int, cases: Sequence[Case] = CASES, tell: Callable[[str], None] = lambda line: None
) -> list[dict]:
    """One row for each case, on the CPU whatever the device: what is measured runs there.

    rounds: of BURST decode steps, beside as many of another model of the same weights that is not wrapped, on a prompt
    of the same physical lengths. hook_us: one hook on one layer. step_us: what a step takes longer, by layer; medians
    of BLOCKS runs of consecutive rounds, because single steps scatter by more than the bound.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build(SHAPES["narrow"], torch.float32, side=SIDE)
        rows = []
        for case in cases:
            tell(f"hooks: {case.name}")
            rows.append(_row(model, case, rounds))
        return rows
    finally:
        torch.set_num_threads(threads)


def _row(model: nn.Module, case: Case, rounds: int) -> dict:
    other = twin(model)
    inputs = prompt(other, case.images, TEXT)
    kept = [n * SIDE * SIDE for n in case.images]
    if case.policy:
        vtprune.wrap(other, case.policy, **case.options)
        prefill(other, inputs)
        kept = [after for _, after in vtprune.report(other).tokens]
    layers = other.model.language_model.layers
    for layer in layers if case.empty else ():
        layer.register_forward_pre_hook(_empty, with_kwargs=True)
    step = Steps(other, inputs, prefill(other, inputs))
    held = step.cache.layers[0].keys.shape[2]
    plain = short_prompt(model, kept, TEXT, held)
    beside = Steps(model, plain, prefill(model, plain))
    step(), beside()
    extra = _longer(step, beside, max(1, rounds // BLOCKS), len(layers))
    row = {"what": "hook", "case": case.name, "policy": case.policy, "images": list(case.images), "kept": kept}
    row |= {"layers": len(layers), "held": held, "runs": BLOCKS * max(1, rounds // BLOCKS)}
    if not case.policy:
        return {**row, **spread("step_us", extra)}
    with hook_times(other, WALL) as times:
        for _ in range(BURST * BLOCKS):
            step()
    row |= {**spread("hook_us", times.layer), "other_us": sum(times.other) / (BURST * BLOCKS)}
    return {**row, **STEP.judged("step_us", extra)}


def _empty(module: nn.Module, args: tuple, kwargs: dict) -> None:
    pass


def _longer(step: Steps, beside: Steps, rounds: int, layers: int) -> list[float]:
    """Microseconds that a step takes longer than one of ``beside``, by layer, for each of BLOCKS runs of rounds."""

    def burst(one: Steps) -> Callable[[], None]:
        # several at once, as in ``generate``: a model that just ran finds its own data in the caches
        return lambda: [one() for _ in range(BURST)] and None

    found = []
    for _ in range(BLOCKS):
        seconds = in_turns({"hooked": burst(step), "plain": burst(beside)}, rounds, clock_of("cpu", 1)[1])
        pairs = zip(seconds["hooked"], seconds["plain"], strict=True)
        found.append(statistics.median(1e6 * (a - b) / BURST / layers for a, b in pairs))
    return found
