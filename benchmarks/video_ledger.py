"""A file of finished pieces of a long run, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class Ledger:
    """Lines of JSON: what the run is about, then a (name, value) pair for every piece, written when it is done."""

    def __init__(self, path: Path, about: Mapping):
        """Goes on with the file if it is about the same; otherwise begins it anew."""
        self.path = path
        lines = [json.loads(line) for line in self._lines()]
        self.found: dict[str, object] = {}
        if lines and lines[0] == json.loads(json.dumps(about)):
            self.found = dict(lines[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in (about, *self.found.items())))

    def _lines(self) -> list[str]:
        """The whole lines; the last one may have been cut off."""
        text = self.path.read_text() if self.path.exists() else ""
        return text.split("\n")[:-1]

    def add(self, name: str, value: object) -> None:
        """Notes that a piece is done."""
        self.found[name] = value
        with self.path.open("a") as file:
            file.write(json.dumps([name, value]) + "\n")

    def close(self) -> None:
        """Everything is in the result file."""
        self.path.unlink()
