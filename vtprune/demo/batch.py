"""Some questions of the embedded task, asked of every policy at every ratio: accuracy against visual tokens kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.api import pruned
from vtprune.chat import encode, floats_as
from vtprune.cli.error import UserError
from vtprune.cli.prompt import prompt_text
from vtprune.demo.controls import read_policy, suggested
from vtprune.demo.engine import Engine
from vtprune.demo.grid import plan
from vtprune.draw.curve import Point
from vtprune.models import Loaded

FEWEST, MOST = 4, 400
"""Questions."""

CHUNK = 16
"""Questions that are asked together."""

FIRST_SEED = 9_000
WHOLE = "unpruned"
MAX_NEW_TOKENS = 8


@dataclass
class Tally:
    """Answers under one condition. tokens: visual tokens kept, summed over questions."""

    policy: str
    keep_ratio: float | None
    right: int = 0
    asked: int = 0
    tokens: float = 0.0

    @property
    def point(self) -> Point:
        low, high = interval(self.right, self.asked)
        return Point(self.tokens / self.asked, self.right / self.asked, low, high)


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % of a share (1927, J. Am. Stat. Assoc. 22)."""
    z2 = 1.96**2
    middle, half = right + z2 / 2, 1.96 * math.sqrt(right * (n - right) / n + z2 / 4)
    return max(0.0, (middle - half) / (n + z2)), min(1.0, (middle + half) / (n + z2))


def check_count(n: Any) -> int:
    """A number of questions. Raises UserError."""
    whole = isinstance(n, (int, float)) and not isinstance(n, bool) and n == n and n == int(n)
    if not whole or not FEWEST <= n <= MOST:
        raise UserError(f"questions is a whole number from {FEWEST} to {MOST}; got {n!r}")
    return int(n)


def questions(n: int) -> list[tuple[Any, str, str]]:
    """(picture, question, right answer) of so many generated scenes, the kinds of questions in turn."""
    from vtprune.embedded.scenes import KINDS, make_scene

    found = []
    for i in range(n):
        scene = make_scene(FIRST_SEED + i, "test")
        wanted = KINDS[i % len(KINDS)]
        asked = [q for q in scene.questions if q.kind == wanted] or list(scene.questions)
        one = asked[i % len(asked)]
        found.append((scene.image, one.text, one.answer))
    return found


def tallies(engine: Engine, n: Any, policies: Sequence[str], ratios: Sequence[float]) -> Iterator[list[Tally]]:
    """The tallies so far, the unpruned model's first, after each chunk of questions. Raises UserError."""
    pairs, asked = plan(policies, ratios), questions(check_count(n))
    own = engine.names["image"]
    ready = [
        (name, ratio, read_policy(name, ratio if ratio is not None else 1.0, suggested(own, name)))
        for name, ratio in pairs
    ]
    counts = [Tally(WHOLE, None)] + [Tally(name, ratio) for name, ratio, _ in ready]
    for first in range(0, len(asked), CHUNK):
        chunk = asked[first : first + CHUNK]
        for tally, policy in zip(counts, [None, *(policy for _, _, policy in ready)], strict=True):
            # somebody else may ask in between
            with engine.use("image") as loaded:
                _ask(loaded, chunk, policy, tally)
        yield counts


def _ask(loaded: Loaded, chunk: Sequence[tuple[Any, str, str]], policy: Any, tally: Tally) -> None:
    texts = [prompt_text(loaded, [picture, text]) for picture, text, _ in chunk]
    pictures = [[picture] for picture, _, _ in chunk]
    inputs = floats_as(encode(loaded.processor, texts, loaded.model.device, images=pictures), loaded.model)
    # what is kept of everything, so that the unpruned model's visual tokens are counted too
    with pruned(loaded.model, policy or "none") as report:
        new = loaded.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
    said = loaded.processor.batch_decode(new[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for text, (_, _, answer), (_, left) in zip(said, chunk, report.tokens, strict=True):
        tally.right += text.strip().lower() == answer.lower()
        tally.asked += 1
        tally.tokens += left


def series(counts: Sequence[Tally]) -> tuple[dict[str, list[Point]], Point | None]:
    """Points by policy, and the unpruned model's."""
    found: dict[str, list[Point]] = {}
    for tally in counts[1:]:
        if tally.asked:
            found.setdefault(tally.policy, []).append(tally.point)
    return found, counts[0].point if counts[0].asked else None
