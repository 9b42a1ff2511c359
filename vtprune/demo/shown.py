"""What a page asks about: bundled, generated and uploaded pictures and clips, with questions and known answers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtprune.cli.clips import EXAMPLE_FPS, EXAMPLE_FRAMES, EXAMPLE_SEED, read_clip
from vtprune.cli.error import UserError
from vtprune.video.frames import Frames

MAX_BYTES = 64 * 2**20
"""Of an uploaded file."""

MAX_SECONDS = 20 * 60.0
"""Of an uploaded clip."""

MAX_FRAMES = 64
"""Frames of a clip that a page reads."""

MOST_FRAMES = 256
"""Of a comparison with more frames."""

MAX_SEED = 2**31 - 1

FIRST_SCENES = (1, 2, 3, 4, 5)
"""Scenes of the test split that are offered beside the bundled picture."""

FIRST_CLIPS = (7, 12, 23)

BUNDLED = "bundled"


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture or a clip.

    questions: with the right answers, where they are known. notes: what differs from what was asked for.
    again:     of a clip, another number of its frames.
    """

    name: str
    visual: Image.Image | Frames
    questions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    again: Callable[[int], Frames] | None = None

    def right(self, question: str) -> str | None:
        """The right answer, None where it is not known."""
        return dict(self.questions).get(question)


def example_picture(name: str) -> Shown:
    """ "bundled", or "scene 3" for the generated scene of that number. Raises UserError for another name."""
    if name == BUNDLED:
        from vtprune.embedded import example
        from vtprune.embedded.scenes import make_scene

        picture, question, answer = example()
        more = {q.text: q.answer for q in make_scene(_bundled_seed(), "test").questions}
        return Shown("the bundled picture", picture, tuple({question: answer, **more}.items()))
    seed = _seed(name, "scene")
    from vtprune.embedded.scenes import make_scene

    scene = make_scene(seed, "test")
    return Shown(f"scene {seed}", scene.image, tuple({q.text: q.answer for q in scene.questions}.items()))


def _bundled_seed() -> int:
    from vtprune.embedded import EXAMPLE_SEED as seed

    return seed


def example_clip(name: str, n: int) -> Shown:
    """ "bundled", or "clip 7" for the generated clip of that number: so many of its frames, evenly spread."""
    from vtprune.embedded.clips import make_clip

    seed = EXAMPLE_SEED if name == BUNDLED else _seed(name, "clip")
    clip = make_clip(seed, "test", EXAMPLE_FRAMES)

    def frames(n: int) -> Frames:
        return _chosen(clip.frames, min(n, MOST_FRAMES))

    title = "the bundled clip" if name == BUNDLED else f"clip {seed}"
    questions = {q.text: q.answer for q in clip.questions}
    if name == BUNDLED:
        from vtprune.cli.clips import EXAMPLE_QUESTION

        questions = {EXAMPLE_QUESTION: questions[EXAMPLE_QUESTION], **questions}
    return Shown(title, frames(check_frames(n)), tuple(questions.items()), again=frames)


def _chosen(film: np.ndarray, n: int) -> Frames:
    from vtprune.video.choose import Wish, choose
    from vtprune.video.timeline import Timeline

    timeline = Timeline(np.arange(len(film)) / EXAMPLE_FPS, len(film) / EXAMPLE_FPS)
    rows, note = choose(Wish(n, None), timeline)
    seconds = timeline.seconds[rows]
    return Frames(film[rows], seconds, rows, len(film), EXAMPLE_FPS, timeline.duration, "generated", note)


def _seed(name: object, noun: str) -> int:
    """The number in "scene 3"."""
    words = str(name).split()
    if len(words) == 2 and words[0] == noun and words[1].isdecimal() and int(words[1]) <= MAX_SEED:
        return int(words[1])
    raise UserError(f"an example is {BUNDLED!r} or {noun + ' N'!r} with a number up to {MAX_SEED}; got {str(name)!r}")


def uploaded_picture(path: str | None) -> Shown:
    """A picture from a file. Raises UserError, ImageError where it is none; messages name the file, not its place."""
    from vtprune.images import ImageError, read_image

    file = _check_file(path, "a picture")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            picture = read_image(file)
        except ImageError as error:
            raise UserError(_without_folder(error, file)) from error
    notes = tuple(_without_folder(one.message, file) for one in caught if "animated" in str(one.message))
    return Shown(file.name, picture, notes=notes)


def uploaded_clip(path: str | None, n: int) -> Shown:
    """So many frames of a clip from a file. Raises UserError where it cannot be read or lasts too long."""
    file = _check_file(path, "a clip")

    def frames(n: int) -> Frames:
        try:
            read = read_clip(str(file), n=min(n, MOST_FRAMES)).frames
        except (ValueError, OSError) as error:
            text = _without_folder(error, file).replace("--partial", "vtprune run --partial")
            raise UserError(text) from error
        if read.duration > MAX_SECONDS:
            raise UserError(
                f"{file.name} lasts {read.duration:,.0f} s; the page reads clips of up to {MAX_SECONDS:,.0f} s. Cut "
                "it, or use vtprune run"
            )
        return read

    read = frames(check_frames(n))
    return Shown(file.name, read, notes=tuple(t for t in (read.note, read.warning) if t), again=frames)


def check_frames(n: Any) -> int:
    """A number of frames. Raises UserError."""
    whole = isinstance(n, (int, float)) and not isinstance(n, bool) and n == n and n == int(n)
    if not whole or not 2 <= n <= MAX_FRAMES:
        raise UserError(f"frames is a whole number from 2 to {MAX_FRAMES}; got {n!r}")
    return int(n)


def with_frames(shown: Shown, n: Any) -> Shown:
    """The same clip with another number of frames."""
    n = check_frames(n)
    if shown.again is None or len(shown.visual) == n:
        return shown
    return dataclasses.replace(shown, visual=shown.again(n))


def _check_file(path: str | None, what: str) -> Path:
    if not path:
        raise UserError(f"there is no file; choose {what} of this machine, or an example")
    file = Path(path)
    if file.is_file() and file.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{file.name} has {file.stat().st_size:,} bytes; the page takes files of up to {MAX_BYTES:,}. Make it "
            "smaller, or use vtprune run"
        )
    return file


def _without_folder(error: object, file: Path) -> str:
    return str(error).replace(str(file), file.name).replace(str(file.parent), "")
