"""What a decode step pays for being hooked, where nothing runs but Python: between the layers, and in the cache."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

import vtprune
from benchmarks.engine_model import SHAPES, Steps, build, prefill, prompt, short_prompt, twin
from benchmarks.engine_time import WALL, Bound, hook_times, spread

STEP = Bound("<=", 5.0)
"""Microseconds that a decode step may take longer for each layer."""
SIDE, TEXT = 8, 16
BLOCKS, BURST = 6, 5

Spans = list[list[float]]
"""Of each place in a step the microseconds that it took in each step."""


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
    of the same physical lengths. The rows give medians over BLOCKS runs of consecutive rounds.
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
    """hook_us: one hook on one layer, by itself. layer_us: what a step takes longer, by layer."""
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
    each = max(1, rounds // BLOCKS)
    row = {"what": "hook", "case": case.name, "policy": case.policy, "images": list(case.images), "kept": kept}
    row |= {"layers": len(layers), "held": held, "runs": BLOCKS * each}
    # the model's own hooks: few, so their sum is spread over the layers
    with hook_times(other, WALL) as times:
        for _ in range(BURST * each):
            step()
    outer = sum(times.other) / (BURST * each)
    extra = [(_longer(step, beside, each) + outer) / len(layers) for _ in range(BLOCKS)]
    if times.layer:
        row |= spread("hook_us", times.layer)
    row["outer_us"] = outer
    return {**row, **(STEP.judged("layer_us", extra) if case.policy else spread("layer_us", extra))}


def _empty(module: nn.Module, args: tuple, kwargs: dict) -> None:
    pass


def _longer(step: Steps, beside: Steps, rounds: int) -> float:
    """Microseconds that all spans of a step take longer than those of a step of ``beside``."""
    with spans(step) as hooked, spans(beside) as plain:
        for _ in range(rounds):
            # several steps at once, as in ``generate``: a model that just ran finds its own data in the caches
            for one in (step, beside):
                for _ in range(BURST):
                    one()
    return sum(map(statistics.median, hooked)) - sum(map(statistics.median, plain))


@contextmanager
def spans(step: Steps) -> Iterator[Spans]:
    """Times what hooks and pruned caches can slow down in steps, and no matrix product, whose noise would drown it.

    That is the way out of each decoder layer and into the next, from the rotary tables before the first to the norm
    after the last, and the cache's updates, which join tensors of the same sizes with pruning and without.
    """
    decoder, cache = step.model.model.language_model, step.cache
    chain = [decoder.rotary_emb, *decoder.layers, decoder.norm]
    found: Spans = [[] for _ in range(2 * len(decoder.layers) + 1)]
    state = {"at": len(chain) - 1, "left": 0.0}

    def stamped(forward: Callable, place: int) -> Callable:
        def call(*args, **kwargs):
            if place and state["at"] == place - 1:
                found[place - 1].append(1e6 * (WALL() - state["left"]))
            out = forward(*args, **kwargs)
            # hooks may ask for rotary tables too, and then they are part of the span
            if place or state["at"] == len(chain) - 1:
                state.update(at=place, left=WALL())
            return out

        return call

    def update(keys, values, index, *args, **kwargs):
        start = WALL()
        out = type(cache).update(cache, keys, values, index, *args, **kwargs)
        found[len(chain) - 1 + index].append(1e6 * (WALL() - start))
        return out

    for place, module in enumerate(chain):
        # a hook would take the way through torch that is to be measured
        vars(module)["forward"] = stamped(module.forward, place)
    vars(cache)["update"] = update
    try:
        yield found
    finally:
        for owner in (*chain, cache):
            vars(owner).pop("update" if owner is cache else "forward")
