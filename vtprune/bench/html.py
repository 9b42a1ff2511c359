"""A report as one HTML file that needs nothing else: its pictures are inside, it fetches nothing, it runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from vtprune.bench.document import Block, Bullets, Code, Folded, Heading, Picture, Table, Text

_STYLE = """
:root { --ink: #1d2329; --quiet: #68737d; --line: #dfe3e7; --back: #f6f8fa; --good: #0b5fa5; --bad: #b34700; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 5rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: .8rem;
  border-top: 2px solid var(--ink); } h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 52rem; } li { margin: .25rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: 0 0 1rem; } nav a { color: var(--good); }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .3rem; }
.wide { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .83rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--back); font-weight: 600; vertical-align: bottom; white-space: normal; }
th.left, td.left { text-align: left; } td.left { white-space: normal; overflow-wrap: break-word; min-width: 7rem; }
tbody tr:hover td { background: #f2f7fc; } tbody tr:last-child td { border-bottom: 0; }
tr.part th { text-align: left; background: #fff; padding-top: 1rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.quiet { color: var(--quiet); } .strong { font-weight: 700; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--good); }
@media print { details > * { display: block; } .wide { overflow: visible; } }
"""


def html(title: str, blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """The text of a file. pictures: PNG files by name."""
    headings = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{_place(one, blocks)}">{escape(one.text)}</a>' for one in headings)
    nav = f"<nav>{links}</nav>" if len(headings) > 1 else ""
    body = [_block(block, blocks, pictures) for block in blocks]
    # after the title
    body.insert(1, nav)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _place(heading: Heading, blocks: Sequence[Block]) -> str:
    """A heading's anchor: its number, whatever its text holds."""
    return f"h{next(i for i, block in enumerate(blocks) if block is heading)}"


def _block(block: Block, blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    if isinstance(block, Heading):
        place = f' id="{_place(block, blocks)}"' if block.level == 2 else ""
        return f"<h{block.level}{place}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Picture):
        data = base64.b64encode(pictures[block.file]).decode()
        words = escape(block.words)
        return (
            f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
        )
    if isinstance(block, Folded):
        inside = "".join(_block(one, blocks, pictures) for one in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>{inside}</details>"
    return _table(block)


def _table(table: Table) -> str:
    sides = [' class="left"' if column in table.left else "" for column in table.columns]
    head = "".join(f"<th{side}>{escape(column)}</th>" for side, column in zip(sides, table.columns, strict=True))
    lines, parts = [], dict(table.parts)
    for i, row in enumerate(table.rows):
        if i in parts:
            lines.append(f'<tr class="part"><th colspan="{len(table.columns)}">{escape(parts[i])}</th></tr>')
        cells = []
        for side, cell in zip(sides, row, strict=True):
            text = f'<span class="{cell.tone}">{escape(cell.text)}</span>' if cell.tone else escape(cell.text)
            cells.append(f"<td{side}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
