"""What a decode step pays for being hooked: the hooks by themselves, and steps of a model so narrow that it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import vtprune
from benchmarks.engine_model import SHAPES, Steps, build, prefill, prompt, short_prompt, twin
from benchmarks.engine_time import WALL, Bound, clock_of, hook_times, in_turns, spread

STEP = Bound("<=", 5.0)
"""Microseconds that a decode step may take longer for each layer with a hook."""
SIDE, TEXT = 8, 16
BLOCKS = 6


@dataclass(frozen=True)
class Case:
    """A wrapped model and a batch. images: of each sample; unequal ones are padded on the left."""

    name: str
    images: tuple[int, ...]
    policy: str
    options: dict


CASES = (
    Case("one sample, all kept", (2,), "none", {}),
    Case("one sample", (2,), "random", {"keep_ratio": 0.25}),
    Case("one sample, compact positions", (2,), "random", {"keep_ratio": 0.25, "positions": "compact"}),
    Case("padded batch, all kept", (1, 2), "none", {}),
    Case("ragged batch", (1, 2), "random", {"keep_ratio": 0.25}),
    Case("ragged batch, compact positions", (1, 2), "random", {"keep_ratio": 0.25, "positions": "compact"}),
)


def hook_rows(
    rounds: int, cases: Sequence[Case] = CASES, tell: Callable[[str], None] = lambda line: None
) -> list[dict]:
    """One row for each case, on the CPU whatever the device: what is measured runs there.

    rounds: decode steps of the wrapped model, each beside one of the unwrapped model on a prompt of the same physical
    lengths. hook_us: one hook on one layer. step_us: what a step takes longer, by hooked layer; medians of BLOCKS runs
    of consecutive rounds, because single steps scatter by more than the bound.
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
    wrapped = vtprune.wrap(twin(model), case.policy, **case.options)
    inputs = prompt(wrapped, case.images, TEXT)
    cache = prefill(wrapped, inputs)
    step, held = Steps(wrapped, inputs, cache), cache.layers[0].keys.shape[2]
    kept = [after for _, after in vtprune.report(wrapped).tokens]
    plain = short_prompt(model, kept, TEXT, held)
    other = Steps(model, plain, prefill(model, plain))
    hooked = sum(bool(layer._forward_pre_hooks) for layer in model_layers(wrapped))
    per_block = max(2, rounds // BLOCKS)
    for _ in range(5):
        step(), other()
    _, clock = clock_of("cpu", 1)
    extra = []
    for _ in range(BLOCKS):
        seconds = in_turns({"wrapped": step, "plain": other}, per_block, clock)
        pairs = zip(seconds["wrapped"], seconds["plain"], strict=True)
        extra.append(spread("us", [1e6 * (a - b) / hooked for a, b in pairs])["us"])
    with hook_times(wrapped, WALL) as times:
        for _ in range(per_block):
            step()
    row = {"what": "hook", "case": case.name, "policy": case.policy, "images": list(case.images), "kept": kept}
    row |= {"layers": hooked, "held": held, "runs": BLOCKS * per_block, **spread("hook_us", times.layer)}
    row |= {"other_us": sum(times.other) / per_block, **STEP.judged("step_us", extra)}
    return {**row, "plain_step_us": 1e6 * spread("s", seconds["plain"])["s"] / hooked}


def model_layers(model: nn.Module) -> nn.ModuleList:
    return model.model.language_model.layers
