"""One policy on one prompt: its share of the prefill, and its time against the literal form of the same method."""

import atexit
import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import policies_literal as literal
from benchmarks import policies_literal_video as literal_video
from benchmarks.engine_time import Bound, ratios, spread
from benchmarks.policies_literal import Answer, TooLarge
from benchmarks.policies_scene import Scene, Stop, record, serve
from benchmarks.policies_shapes import Product, Shape, prefill_flops
from benchmarks.policies_time import turns
from vtprune.apply import merge_rows
from vtprune.policies.base import POLICIES, Policy
from vtprune.tokens import Selection, site_name

MOST_SHARE = 0.02
"""Of the unpruned prefill, for selecting and the signals together."""
PATIENCE = 60.0
"""Seconds of one call above which a literal form is not run."""

PUBLISHED: dict[str, dict] = {
    "fastv": {"keep_ratio": 0.5, "layer": 2},
    "vtc_cls": {"n_keep": 36, "layers": tuple(range(16, 23))},
    "transprune": {"keep_ratios": (0.875, 0.625, 0.125)},
    "framefusion": {"keep_ratio": 0.3},
    "idpruner": {"keep_ratio": 0.25, "scorer": "made up"},
}
"""Options of a method as it was published, where that is more than one of the common keep ratios. A scorer is made up:
random weights of the published size."""
SCORER_WIDTH = 1792
"""Of the published scorer's queries and keys."""

LITERAL: dict[str, Callable[[Policy, list[Stop]], list[Answer]]] = {
    "random": literal.random,
    "uniform": literal.uniform,
    "fastv": literal.fastv,
    "vtc_cls": literal.vtc_cls,
    "idpruner": literal.idpruner,
    "transprune": literal.transprune,
    "framefusion": literal_video.framefusion,
    "quota": literal_video.quota,
}
"""By the name of the policy; the docstring says in a few words what is done the long way."""

APPLIED = ("quota",)
"""Policies whose answers are compared, and timed, as the vectors that they become: the literal form makes those."""


def settings(name: str, keep_ratios: list[float], shape: Shape) -> list[tuple[str, dict]]:
    """Names and options of what a policy is run with."""
    common = [(f"keep {100 * ratio:g} %", {"keep_ratio": ratio}) for ratio in keep_ratios]
    # nothing was published of VTC-CLS on a tower without a class token
    published = name in PUBLISHED and (name != "vtc_cls" or shape.facts.class_token)
    return common + ([("as published", PUBLISHED[name])] if published else [])


def make(name: str, shape: Shape, options: Mapping) -> Policy:
    """A registered policy, fitted to the model; QuoTA is told made-up scores of a video's frames."""
    if name not in POLICIES:
        raise ValueError(f"no policy is registered as {name!r}; known: {', '.join(sorted(POLICIES))}")
    cls = POLICIES[name]
    known = {field.name for field in dataclasses.fields(cls)}
    if "frame_scores" in known and shape.kind == "video":
        frames = shape.grids[0][0]
        scores = torch.rand(frames, generator=torch.Generator().manual_seed(frames), dtype=torch.float64)
        options = {"frame_scores": scores, **options}
    if "scorer" in options:
        options = {**options, "scorer": made_up_scorer(shape.width)}
    policy = cls(**{option: value for option, value in options.items() if option in known})
    return policy.fitted(shape.facts) if hasattr(policy, "fitted") else policy


@cache
def made_up_scorer(width: int) -> str:
    """The path of a file with the weights of a scorer, which is there as long as this process."""
    folder, generator = TemporaryDirectory(), torch.Generator().manual_seed(width)
    atexit.register(folder.cleanup)
    sizes = {"weight": (SCORER_WIDTH, width), "bias": (SCORER_WIDTH,)}
    made = {
        f"{part}_proj.{name}": torch.randn(size, generator=generator) / width**0.5
        for part in "qk"
        for name, size in sizes.items()
    }
    path = f"{folder.name}/scorer.safetensors"
    save_file(made, path)
    return path


class Case:
    """A policy with one setting on the prompt of one shape, run once so that every site has its tokens."""

    def __init__(self, name: str, setting: str, options: Mapping, scene: Scene):
        self.name, self.scene = name, scene
        self.policy = make(name, scene.shape, options)
        self.stops = record(self.policy, scene)
        self.head = {
            **{"policy": name, "model": scene.shape.title, "visual": scene.shape.visual, "setting": setting},
            **{"options": {option: repr(value) for option, value in options.items()}},
        }

    def ours(self) -> list[Selection]:
        return serve(self.policy, self.stops)

    def applied(self) -> list[Answer]:
        """What the literal form gives: answers, or vectors."""
        answers = self.ours()
        return [self.vectors(i, answer) for i, answer in enumerate(answers)] if self.name in APPLIED else answers

    def note(self) -> dict:
        """What has to be said beside the numbers."""
        if self.name == "quota":
            return {"note": "resizing only: the scorer is left out"}
        if self.name == "vtc_cls" and not self.scene.shape.facts.class_token:
            return {"note": "an extension: all patches stand in for the class token"}
        if self.name == "idpruner" and self.policy.scorer is None:
            return {"note": "attention of the tower stands in for the trained scorer"}
        return {}

    def vectors(self, i: int, answer: Selection) -> Tensor:
        return merge_rows(self.stops[i].state.tokens.hidden, answer)


def share_row(case: Case, product: Product, rounds: int, clock: Mapping) -> dict:
    """The time of selecting and of the signals as a share of the prefill, in turns with a product of its matrices."""
    answers: list = []

    def select():
        answers[:] = case.ours()

    seconds = turns({"policy": select, "product": product.call}, rounds, clock)
    flops = prefill_flops(case.scene.shape)
    # the prefill's seconds in that round, if it went at the speed of the product
    prefill = [flops / product.flops * second for second in seconds["product"]]
    acting = [(stop, answer) for stop, answer in zip(case.stops, answers) if _acts(stop, answer)]
    return {
        "what": "share",
        **case.head,
        "sites": len(case.stops),
        "acts": [site_name(stop.site) for stop, _ in acting],
        "kept": [len(answer.keep) for _, answer in acting],
        "signals": sorted(case.policy.needs),
        **case.note(),
        **spread("seconds", seconds["policy"]),
        **spread("prefill_seconds", prefill),
        "runs": len(prefill),
        **Bound("<=", MOST_SHARE).judged("share", ratios(seconds["policy"], prefill)),
    }


def _acts(stop: Stop, answer: Selection) -> bool:
    return len(answer.keep) < stop.state.n or answer.changes


def literal_row(case: Case, rounds: int, clock: Mapping, before: dict | None) -> dict:
    """Ours against the literal form, in turns. before: the row of the same setting on the prompt that came before."""
    form = LITERAL.get(case.name)
    row = {"what": "literal", **case.head, "literal": form.__doc__ if form else None}
    if form is None:
        return {**row, "skipped": "no literal form of this policy is written"}
    if before is not None and "literal_seconds" in before:
        expected = before["literal_seconds"] * (case.scene.shape.visual / before["visual"]) ** 2
        if expected > PATIENCE:
            return {**row, "skipped": f"as the square of the size it would take about {expected:.0f} s a call"}
    found: dict[str, list[Answer]] = {}

    def ours():
        found["ours"] = case.applied()

    @torch.no_grad()
    def theirs():
        found["literal"] = form(case.policy, case.stops)

    _prepare(case)
    try:
        seconds = turns({"literal": theirs, "ours": ours}, rounds, clock)
    except TooLarge as error:
        return {**row, "skipped": str(error)}
    return {
        **row,
        **agreement(found["ours"], found["literal"]),
        **spread("seconds", seconds["ours"]),
        **spread("literal_seconds", seconds["literal"]),
        "runs": len(seconds["ours"]),
        **spread("speedup", ratios(seconds["literal"], seconds["ours"])),
    }


def _prepare(case: Case) -> None:
    """Computes the queries and keys that literal forms take as given, before anything is timed."""
    if any(need.startswith(("last_query", "text")) for need in case.policy.needs):
        for state in {id(stop.state): stop.state for stop in case.stops}.values():
            _ = state.call
    if any(need.startswith(("cls", "vision")) for need in case.policy.needs):
        _ = case.scene.tower_calls


def agreement(mine: list[Answer], other: list[Answer]) -> dict:
    """Whether two forms say the same at every site; if not, how many tokens one of them keeps and the other does not.

    Vectors are the same where they differ by one rounding of their dtype at most, and by a few in float32.
    """
    if isinstance(other[0], Tensor):
        pairs = list(zip(mine, other, strict=True))
        same = all(a.shape == b.shape and _close(a, b) for a, b in pairs)
        return {"same": same}
    kept = [(set(a.keep.tolist()), set(b.keep.tolist())) for a, b in zip(mine, other, strict=True)]
    differing = max(len(a ^ b) for a, b in kept)
    groups = all(
        (a.merge is None) == (b.merge is None) and (a.merge is None or torch.equal(a.merge, b.merge))
        for a, b in zip(mine, other)
    )
    return {"same": differing == 0 and groups, **({} if not differing else {"differing": differing})}


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=max(2e-6, torch.finfo(a.dtype).eps), atol=2e-6)
