"""When the frames of a clip are shown, and what every reader of clips can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

Report = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the N frames of a clip are shown.

    seconds:  (N,) float64 ascending, when each frame begins; the first at 0.
    duration: seconds from the beginning of the first to the end of the last.
    missing:  what of the clip is known not to be there, in words; mostly empty.
    assumed:  what had to be assumed about its times, in words; mostly empty.
    """

    seconds: np.ndarray
    duration: float
    missing: str = ""
    assumed: str = ""

    @property
    def fps(self) -> float:
        return len(self.seconds) / self.duration if self.duration > 0 else 0.0


class Reader(Protocol):
    """One clip, opened by one library.

    ``pictures`` gives each of the ascending rows once, in any order, with its upright RGB picture, or with the reason
    in words why there is none.
    """

    name: str
    timeline: Timeline

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Image.Image | str]]: ...
