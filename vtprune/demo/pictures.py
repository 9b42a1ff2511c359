"""What the image tab shows of a trace: the picture, its scores, what was kept at each site; and one token's story."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vtprune.cli.error import UserError
from vtprune.demo.study import Answered, seen_picture
from vtprune.demo.trace import Trace, passages, token_at
from vtprune.draw import heat_map, token_map
from vtprune.draw.cell import cell_at, ringed
from vtprune.draw.heat import span
from vtprune.draw.picture import enlarge
from vtprune.kept import Kept
from vtprune.tokens import BEFORE_LLM


@dataclass(frozen=True, eq=False)
class Pictures:
    """Drawings of one trace, None where they are not possible; why says so.

    heat: with low and high, its lowest and highest score, and what they are.
    """

    original: Image.Image | None
    heat: Image.Image | None
    kept: Image.Image | None
    low: float = 0.0
    high: float = 0.0
    what: str = ""
    why: str = ""


def pictures(answered: Answered, trace: Trace, ring: tuple[int, int] | None = None) -> Pictures:
    """The three drawings. ring: (row, column) of a cell to point out."""
    seen, grid = seen_picture(answered.study), trace.grid()
    if seen is None or not trace.stops:
        return Pictures(None, None, None, why="what the model sees of this picture cannot be drawn")
    whole, kept = enlarge(seen), _only(trace)
    if kept is None:
        return Pictures(whole, None, None, why="the places of the visual tokens are unknown for this model")
    cells, drawn = trace.heat(), token_map(seen, kept)
    heat = None if cells is None else heat_map(seen, cells)
    if ring is not None and grid is not None:
        whole, heat = ringed(whole, grid, *ring), None if heat is None else ringed(heat, grid, *ring)
        drawn = ringed(drawn, grid, *ring) if len(kept.grids) == 1 else drawn
    if cells is None:
        return Pictures(whole, None, drawn, why="this policy gives tokens no score: it chooses by place or by likeness")
    number, _, what = trace.scored
    return Pictures(whole, heat, drawn, *span(cells), f"{what}, {trace.stops[number].name}")


def _only(trace: Trace, until: int = -1) -> Kept | None:
    kept = trace.kept(until)
    return kept[0] if len(kept) == 1 and 1 <= len(kept[0].grids) <= 2 else None


def by_site(answered: Answered, trace: Trace) -> list[tuple[Image.Image, str]]:
    """What is left after each site, with words."""
    seen = seen_picture(answered.study)
    if seen is None:
        return []
    found = []
    for number, stop in enumerate(trace.stops):
        kept = _only(trace, number)
        if kept is not None:
            found.append((token_map(seen, kept), f"{stop.name}: {len(kept.rows):,} of {kept.of:,}"))
    return found


def summary(trace: Trace) -> str:
    """What was kept, in a sentence: how many tokens the decoder sees from each site on."""
    steps = ", ".join(f"{len(stop.rows):,} {_from(stop.site)}" for stop in trace.stops)
    share = f"{100 * trace.left / trace.of:.0f} %" if trace.of else "none"
    return f"Kept {trace.left:,} of {trace.of:,} visual tokens ({share}): {steps}."


def _from(site: float) -> str:
    if site == BEFORE_LLM:
        return "enter the LLM"
    return f"from layer {int(site)} on" if site == int(site) else f"from the middle of layer {int(site)} on"


def cell_of(pictures_size: tuple[int, int], trace: Trace, x: float, y: float) -> tuple[int, int]:
    """(row, column) of a click. Raises UserError outside the grid."""
    grid = trace.grid()
    cell = None if grid is None else cell_at(pictures_size, grid, x, y)
    if cell is None:
        raise UserError("there is no visual token at this place; click on a cell of the picture")
    return cell


def check_cell(trace: Trace, row: object, column: object) -> tuple[int, int]:
    """(row, column) counted from 0, from numbers that count from 1. Raises UserError."""
    grid = trace.grid()
    if grid is None:
        raise UserError("the places of the visual tokens are unknown for this model: there is no cell to look at")
    numbers = [n for n in (row, column) if isinstance(n, (int, float)) and not isinstance(n, bool) and n == n]
    if len(numbers) != 2 or not all(1 <= n <= most and n == int(n) for n, most in zip(numbers, grid)):
        raise UserError(f"the grid has rows 1 to {grid[0]} and columns 1 to {grid[1]}; got {row!r} and {column!r}")
    return int(numbers[0]) - 1, int(numbers[1]) - 1


def story(trace: Trace, row: int, column: int) -> list[str]:
    """What became of the token at a cell, a sentence for each site."""
    where = f"Row {row + 1}, column {column + 1}"
    token = token_at(trace, row, column)
    if token is None:
        return [f"{where}: no visual token was offered here."]
    told = [f"{where}: visual token {token + 1} of {trace.of}."]
    for one in passages(trace, token):
        score = "" if one.score is None else f"score {one.score:.4g}, rank {one.rank:,} of {one.of:,}, "
        told.append(f"{one.site}: {score}{one.fate}.")
    return told
