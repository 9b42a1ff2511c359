"""One picture, one question, several policies and ratios: what each keeps, answers, and how near it is to the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vtprune.cli.error import UserError, one_line
from vtprune.cli.result import engineering
from vtprune.demo.controls import has_ratio, read_policy, suggested
from vtprune.demo.engine import Engine
from vtprune.demo.shown import Shown
from vtprune.demo.study import answer, read_study, seen_picture
from vtprune.draw import side_by_side, stack, token_map
from vtprune.draw.picture import label

MAX_CELLS = 36
COLUMNS = 4

FAILURES = (ValueError, TypeError, NotImplementedError, LookupError, ArithmeticError, RuntimeError)
"""What makes a cell of the grid an error instead of ending the comparison."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One policy at one ratio. values: plain numbers. picture: what it kept, None without a grid. error: why not."""

    policy: str
    keep_ratio: float | None
    values: dict[str, Any]
    picture: Image.Image | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return self.policy if self.keep_ratio is None else f"{self.policy} {self.keep_ratio:g}"

    @property
    def agreement(self) -> float:
        """With the unpruned model, -1 where nothing is known."""
        found = self.values.get("comparison", {}).get("agreement")
        return -1.0 if found is None else found


def plan(policies: Sequence[str], ratios: Sequence[float]) -> list[tuple[str, float | None]]:
    """The cells to fill. Raises UserError for none or too many, for names and ratios that do not exist."""
    pairs: list[tuple[str, float | None]] = []
    for name in policies or ():
        pairs += [(name, ratio) for ratio in ratios or ()] if has_ratio(name) else [(name, None)]
    for _, ratio in pairs:
        number = ratio is None or (isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and 0 < ratio <= 1)
        if not number:
            raise UserError(f"keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got {ratio!r}")
    if not 1 <= len(pairs) <= MAX_CELLS:
        raise UserError(
            f"a comparison has 1 to {MAX_CELLS} cells; got {len(policies or ())} policies and {len(ratios or ())} "
            f"ratios, which make {len(pairs)}. Choose at least one of each, and not too many"
        )
    return pairs


def compare(
    engine: Engine, shown: Shown, question: str, policies: Sequence[str], ratios: Sequence[float]
) -> Iterator[tuple[list[Cell], int]]:
    """The cells so far, the best agreement first, and how many there will be; after each cell."""
    pairs, cells = plan(policies, ratios), []
    with engine.use("image") as loaded:
        study = read_study(loaded, shown, question)
    for name, ratio in pairs:
        # somebody else may ask in between
        with engine.use("image") as loaded:
            cells.append(_cell(loaded, study, name, ratio))
        cells.sort(key=lambda cell: (-cell.agreement, cell.values.get("pruned", {}).get("visual_tokens", 0), cell.name))
        yield list(cells), len(pairs)


def _cell(loaded: Any, study: Any, name: str, ratio: float | None) -> Cell:
    try:
        policy = read_policy(name, ratio if ratio is not None else 1.0, suggested(loaded.name, name))
        found = answer(loaded, study, name, policy, rounds=0)
    except FAILURES as error:
        return Cell(name, ratio, {}, error=one_line(error))
    seen, kept = seen_picture(study), found.trace.kept() if found.trace.stops else []
    drawn = None
    if seen is not None and len(kept) == 1 and 1 <= len(kept[0].grids) <= 2:
        drawn = token_map(seen, kept[0])
    return Cell(name, ratio, found.values, drawn)


def draw_grid(cells: Sequence[Cell], question: str, width: int = 336) -> Image.Image:
    """The cells in rows, each with what it kept, said and agreed to. Raises ValueError for no cells."""
    drawn = []
    for cell in cells:
        picture = cell.picture or Image.new("RGB", (width, width), (238, 238, 238))
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BOX)
        drawn.append(side_by_side([picture], [caption_of(cell)]))
    rows = [side_by_side(drawn[i : i + COLUMNS]) for i in range(0, len(drawn), COLUMNS)]
    grid = stack(rows)
    return stack([label(question, max(grid.width, width)), grid], gap=4)


def caption_of(cell: Cell) -> str:
    """For instance "fastv 0.25: '5', 36 of 144 tokens, agreement 98.2 %, 1.2 M FLOPs"."""
    if cell.error:
        return f"{cell.name}: {cell.error}"
    pruned = cell.values["pruned"]
    agree = "unknown" if cell.agreement < 0 else f"{100 * cell.agreement:.1f} %"
    tokens = f"{pruned['visual_tokens']:,} of {pruned['visual_tokens_before']:,} tokens"
    return f"{cell.name}: {pruned['answer']!r}, {tokens}, agreement {agree}, {engineering(pruned['flops'])}FLOPs"


def plain_cells(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells as JSON can hold them."""
    return [
        {"policy": cell.policy, "keep_ratio": cell.keep_ratio, "error": cell.error or None, **cell.values}
        for cell in cells
    ]
