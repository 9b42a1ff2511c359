"""Where the command line writes: tables for people, JSON for programs, progress on the error stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtprune.cli.error import UserError

STDOUT = "-"


def console(error: bool = False):
    """A rich console on the output (or error) stream; without a terminal lines are as long as they want to be."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    plain = not stream.isatty()
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=10_000 if plain else None)


def status(text: str):
    """A context that shows what is being done, on the error stream, if that is a terminal."""
    return console(error=True).status(printable(text))


@contextmanager
def still(text: str) -> Iterator[None]:
    """Like ``status`` without the moving part, whose thread would disturb what is being timed."""
    stream = sys.stderr
    if not stream.isatty():
        yield
        return
    stream.write(f"{printable(text)} ...")
    stream.flush()
    try:
        yield
    finally:
        # back to the start of the line, and clear it
        stream.write("\r\033[K")
        stream.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Prints a table; ``right`` names the columns of numbers. Plain where the output is no terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    drawn = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    if out.is_terminal:
        out.print(drawn)
        return
    with out.capture() as printed:
        out.print(drawn)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def say(text: str, style: str | None = None) -> None:
    """Prints a paragraph."""
    console().print(printable(text), style=style)


def note(text: str) -> None:
    """One line on the error stream that is no error."""
    sys.stderr.write(f"note: {printable(' '.join(text.split()))}\n")


def printable(text: str) -> str:
    """Text without what could steer a terminal; line ends stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def write_json(value: Any, target: str) -> None:
    """Writes JSON to a file, or to the output stream for "-". Not a number is an error, not NaN."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json cannot write {target}: {error.strerror or error}; choose another place") from error


def check_writable(option: str, target: str) -> None:
    """Raises UserError, before the work, where a file cannot be written."""
    path = Path(target)
    if path.is_dir():
        raise UserError(f"{option} takes a file; {target} is a folder, for instance {path / 'out'}")
    if not path.parent.is_dir():
        raise UserError(f"{option} cannot write {target}: there is no folder {path.parent}; make it first")
    try:
        # opens without truncating, and leaves nothing behind
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"{option} cannot write {target}: {error.strerror or error}; choose another place") from error
