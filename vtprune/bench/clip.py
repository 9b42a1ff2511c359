"""The clip that a question is about, found by its published name; one that is not there fails when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vtprune.bench.files import video
from vtprune.bench.question import Visual


@dataclass(frozen=True)
class Missing:
    """Stands for a clip that was not found: the question about it is a failure, and the others can still be asked."""

    why: str

    def __call__(self, frames: int | None = None) -> NoReturn:
        raise ValueError(self.why)


def clip(folder: Path, name: str, places: Sequence[str]) -> Visual:
    """The clip of this name in one of the sub-folders, whatever its ending; a folder of frames is one too."""
    return Visual("video", find(folder, [(name, places)])[0], name)


def find(folder: Path, tries: Sequence[tuple[str, Sequence[str]]]) -> tuple[Path | Missing, int]:
    """The first clip that is there, and which of the (name, sub-folders) found it; what was tried if none is."""
    why = []
    for i, (name, places) in enumerate(tries):
        try:
            return video(folder, name, places), i
        except ValueError as error:
            why.append(str(error))
    return Missing("; ".join(why)), len(tries)


def require_any(folder: Path, places: Sequence[str]) -> None:
    """Raises ValueError where none of the sub-folders exists: then no clip of the task was unpacked."""
    if not any((folder / place).is_dir() for place in places):
        raise ValueError(
            f"{folder} has no folder of videos: none of {', '.join(places)} is there. Unpack the published videos "
            "into one of them, or give the folder that holds them"
        )
