"""What selecting alone takes, for every registered policy: its signals are given, and are as large as a model's."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.engine_time import Bound, in_turns
from benchmarks.measure import measure
from benchmarks.policies_given import Prompt, reached, select
from benchmarks.policies_rows import MOST_SHARE, make
from benchmarks.policies_shapes import QUICK, SHAPES, Product, Shape, prefill_flops
from vtprune.policies.base import POLICIES

VIDEO = frozenset(
    "aim dycoke evs fastvid flashvid framefusion holitom llava_scissor prunevid quota sttm vidcom2".split()
)
"""Policies that were published for clips; the others choose among the tokens of a picture."""

CROPS = {"title": "LLaVA-NeXT-7B, 27 crops", "grids": ((1, 24, 24), (1, 72, 216)), "tiles": 28}
PICTURES = (SHAPES["llava-1.5"], SHAPES["llava-next"], dataclasses.replace(SHAPES["llava-next"], **CROPS))
CLIPS = tuple(
    dataclasses.replace(SHAPES["qwen2.5-vl"], grids=(grid,)) for grid in ((4, 12, 12), (32, 9, 10), (64, 16, 16))
)
QUICK_PICTURES, QUICK_CLIPS = (QUICK["llava-1.5"], QUICK["llava-next"]), (QUICK["qwen2.5-vl"],)

PATIENCE = {1000: 4.0, 5000: 12.0, 1 << 30: 40.0}
"""Visual tokens, at most -> seconds of a call that is not made if it is expected to take longer."""
RUNS, ENOUGH = 5, 1.0
"""Calls that are timed at most, and the seconds after which there are no more of them."""

WHY = {}
"""Why selecting takes a larger share of a prefill than the bound, for policies whose definition leaves no other way."""


def shapes_of(name: str, quick: bool = False) -> Sequence[Shape]:
    """The prompts that a policy is timed on, shortest first."""
    if quick:
        return QUICK_CLIPS if name in VIDEO else QUICK_PICTURES
    return CLIPS if name in VIDEO else PICTURES


def settings(name: str, keep_ratios: Sequence[float]) -> Iterator[tuple[str, dict]]:
    """Names and options: the common keep ratios that a policy takes, and its defaults if they say something else."""
    usual = POLICIES[name]()
    taken = 0
    for ratio in keep_ratios if hasattr(usual, "keep_ratio") else ():
        try:
            POLICIES[name](keep_ratio=ratio)
        except ValueError:  # some keep no less than a part that they never touch
            continue
        taken += 1
        yield f"keep {100 * ratio:g} %", {"keep_ratio": ratio}
    if not taken or usual.keep_ratio is None:
        yield "as published" if getattr(usual, "keep_ratio", None) is None else f"keep {100 * usual.keep_ratio:g} %", {}


def expected(before: Mapping | None, shape: Shape) -> float:
    """Seconds of a call, as the square of the number of tokens; 0 where nothing is known."""
    if before is None or "seconds" not in before:
        return 0.0
    return before["seconds"] * (shape.visual / before["visual"]) ** 2


def head_of(name: str, setting: str, options: Mapping, shape: Shape) -> dict:
    """What stands in every row."""
    options = {option: repr(value) for option, value in options.items()}
    who = {"policy": name, "model": shape.title, "visual": shape.visual, "setting": setting, "options": options}
    return {"what": "selection", **who, "kind": shape.kind}


def selection_row(
    name: str, setting: str, options: Mapping, prompt: Prompt, product: Product, clock: Mapping, before: Mapping | None
) -> dict:
    """Seconds and bytes of asking a policy at all of its sites, and what share of the prefill the seconds are.

    product: of the prefill's matrices, timed next to the policy. before: the row of the same setting on fewer tokens.
    """
    shape = prompt.shape
    head = head_of(name, setting, options, shape)
    if before is not None and "skipped" in before:
        return {**head, "skipped": f"{before['visual']} tokens took too long already"}
    patience = next(seconds for most, seconds in PATIENCE.items() if shape.visual <= most)
    if (seconds := expected(before, shape)) > patience:
        return {**head, "skipped": f"as the square of the size it would take about {seconds:.0f} s a call"}
    policy = make(name, shape, options)
    seen, answers = reached(policy, prompt), []

    def call():
        answers[:] = select(policy, seen)

    found = measure(call, warmup=0, runs=1, **clock)
    if (runs := min(RUNS, int(ENOUGH / max(found["seconds"], 1e-9)))) > 1:
        found = measure(call, warmup=0, runs=runs, **clock)
    (second,) = in_turns({"product": product.call}, 1, clock)["product"]
    prefill = prefill_flops(shape) / product.flops * second
    share = {end: found[f"seconds{end}"] / prefill for end in ("", "_min", "_max")}
    bound = Bound("<=", MOST_SHARE)
    return {
        **head,
        "sites": len(seen),
        "kept": [len(answer.keep) for answer in answers],
        "signals": sorted(policy.needs),
        **found,
        "prefill_seconds": prefill,
        **{f"share{end}": value for end, value in share.items()},
        "bound": f"share {bound.sign} {bound.limit:g}",
        "verdict": "met" if bound.met(share[""]) else "missed",
        **({"note": WHY[name]} if name in WHY and not bound.met(share[""]) else {}),
    }
