"""A file of JSON objects, one each line, that only grows and survives the death of whoever writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtprune.cli.error import UserError

_CHUNK = 1 << 16


class Lines:
    """The open end of such a file. Each object is appended by one write; a batch of them is on the disk afterwards."""

    def __init__(self, path: Path):
        self.path, self._descriptor = path, None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds objects. Raises ValueError, before anything is written, for one that JSON cannot hold."""
        lines = [line_of(record) for record in records]
        if self._descriptor is None:
            new = not self.path.exists()
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if new:
                sync_folder(self.path.parent)
        for line in lines:
            _write(self._descriptor, line)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; it is opened again by the next ``append``."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def line_of(record: Mapping[str, Any]) -> bytes:
    """An object as a line in ASCII. Raises ValueError for what JSON cannot hold, with the object's beginning."""
    try:
        return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"a record holds what JSON cannot: {error}; the record begins {str(record)[:120]}") from error


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each line, from 1; a last line that is still being written is left out.

    Raises UserError that names the first line that is no JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            found = _object(line)
            if found is not None:
                yield number, found
            elif line.endswith(b"\n"):
                raise UserError(
                    f"{path} line {number} is no JSON object, and only a last line can be half written; repair or "
                    f"remove that line, or set all rows aside with --fresh. It begins {line[:60]!r}"
                )


def heal(path: Path) -> str | None:
    """Makes the last line whole again, or cuts it off into ``path.cut``; what was done in words, None if nothing.

    Only the writer may do that: a line that is being written is half written too.
    """
    if not path.exists():
        return None
    with path.open("rb+") as file:
        start = _last_line(file)
        file.seek(start)
        tail = file.read()
        if not tail:
            return None
        if _object(tail) is not None:
            file.write(b"\n")
            os.fsync(file.fileno())
            return f"the last line of {path} lacked its end, which was added"
        cut = path.with_name(f"{path.name}.cut")
        # there before it is gone here
        with cut.open("ab") as kept:
            kept.write(tail + b"\n")
            kept.flush()
            os.fsync(kept.fileno())
        file.truncate(start)
        os.fsync(file.fileno())
    return f"the last line of {path} was half written; its {len(tail)} bytes are in {cut.name} now"


def _last_line(file) -> int:
    """Where the last line begins that has no end; the length of the file if all have one."""
    end = file.seek(0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - _CHUNK)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return found if isinstance(found, dict) else None


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def sync_folder(folder: Path) -> None:
    """Puts a folder's list of files on the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
