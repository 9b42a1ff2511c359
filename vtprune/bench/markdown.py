"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from vtprune.bench.document import Block, Bullets, Cell, Code, Folded, Heading, Picture, Table, Text

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def markdown(blocks: Sequence[Block]) -> str:
    """The text of a file; pictures stand beside it."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def escaped(text: str) -> str:
    """Text that means itself, on one line: answers of models may hold anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escaped(block.text)}"
    if isinstance(block, Text):
        return escaped(block.text)
    if isinstance(block, Code):
        fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", block.text))]))
        return f"{fence}\n{block.text}\n{fence}"
    if isinstance(block, Bullets):
        return "\n".join(f"* {escaped(item)}" for item in block.items)
    if isinstance(block, Picture):
        return f"![{escaped(block.words)}]({block.file})"
    if isinstance(block, Folded):
        inside = "\n\n".join(_block(one) for one in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>\n\n{inside}\n\n</details>"
    return _table(block)


def _table(table: Table) -> str:
    lines = [_line([escaped(column) for column in table.columns])]
    lines.append(_line(["---" if column in table.left else "---:" for column in table.columns]))
    parts = dict(table.parts)
    for i, row in enumerate(table.rows):
        if i in parts:
            lines.append(_line([f"**{escaped(parts[i])}**", *[""] * (len(table.columns) - 1)]))
        lines.append(_line([_cell(cell) for cell in row]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return f"**{text}**" if text and cell.tone in ("strong", "good", "bad") else text
