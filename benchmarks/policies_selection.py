"""What selecting alone takes, for every registered policy: its signals are given, and are as large as a model's."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.engine_time import Bound, in_turns, spread
from benchmarks.measure import peak_bytes
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

PATIENCE = {1000: 5.0, 5000: 15.0, 1 << 30: 60.0}
"""Visual tokens, at most -> seconds of a call that is not made if it is expected to take longer."""
RUNS, ENOUGH = 5, 1.0
"""Calls that are timed at most, and the seconds after which there are no more of them."""

WHY = {
    "cdpruner": "every pick changes what is left of all tokens, by a product with all picks before it",
    "llava_scissor": "every threshold that keep_ratio tries has components of its own, whose means are all compared",
    "mmtok": "every token counts how well each other stands for it, so all pairs are compared and held",
    "pact": "the density of a token counts its distance to every other, so all pairs are compared",
    "sttm": "every threshold that keep_ratio tries has cells of its own, compared with those of the frames beside them",
    "vispruner": "duplicates go a few at a time, and every round compares one half of what is left to the other",
}
"""Why selecting takes a larger share of a prefill than the bound, for policies whose definition leaves no other way."""


def kind_of(name: str) -> str:
    """What a policy is timed on: "image" or "video"."""
    return "video" if name in VIDEO else "image"


def shapes(quick: bool = False) -> list[tuple[str, Shape]]:
    """The prompts, with their kinds, in the order in which they are made: short ones first."""
    made = [*QUICK.values()] if quick else [*PICTURES, *CLIPS]
    return sorted(((shape.kind, shape) for shape in made), key=lambda one: one[1].visual)


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
    name: str,
    setting: str,
    options: Mapping,
    prompt: Prompt,
    product: Product,
    clock: Mapping,
    before: Mapping | None = None,
    memory: bool = True,
) -> dict:
    """Seconds and bytes of asking a policy at all of its sites, and what share of the prefill the seconds are.

    product: of the prefill's matrices, timed next to the policy. before: the row of the same setting on fewer tokens.
    memory:  whether the policy is asked once more to see how much it holds.
    """
    shape = prompt.shape
    head = head_of(name, setting, options, shape)
    if before is not None and "skipped" in before:
        return {**head, "skipped": f"{before['visual']} tokens took too long already"}
    patience = next(seconds for most, seconds in PATIENCE.items() if shape.visual <= most)
    if (expects := expected(before, shape)) > patience:
        return {**head, "skipped": f"as the square of the size it would take about {expects:.0f} s a call"}
    policy = make(name, shape, options)
    # what a process runs for the first time takes longer, so this counts for nothing
    seen, answers = reached(policy, prompt), []

    def call():
        answers[:] = select(policy, seen)

    (first,) = in_turns({name: call}, 1, clock)[name]
    more = min(RUNS, int(ENOUGH / max(first, 1e-9))) - 1
    seconds = [first, *in_turns({name: call}, max(0, more), clock)[name]]
    (second,) = in_turns({"product": product.call}, 1, clock)["product"]
    prefill = prefill_flops(shape) / product.flops * second
    found = spread("share", [value / prefill for value in seconds])
    bound = Bound("<=", MOST_SHARE)
    return {
        **head,
        "sites": len(seen),
        "kept": [len(answer.keep) for answer in answers],
        "signals": sorted(policy.needs),
        **spread("seconds", seconds),
        "runs": len(seconds),
        "peak_bytes": peak_bytes(call) if memory else None,
        "prefill_seconds": prefill,
        **found,
        "bound": f"share {bound.sign} {bound.limit:g}",
        "verdict": "met" if bound.met(found["share"]) else "missed",
        **({"note": WHY[name]} if name in WHY and not bound.met(found["share"]) else {}),
    }
