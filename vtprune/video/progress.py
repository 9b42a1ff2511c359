"""Progress of reading a clip: a bar on the error stream, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vtprune.video.timeline import Report


@contextmanager
def reporting(progress: bool | Report, name: str) -> Iterator[Report]:
    """What readers call with what they do and how much of it is done.

    progress: True shows a bar on the error stream; a function is called with (text, fraction); False shows nothing.
    """
    if callable(progress):
        yield progress
        return
    if not progress:
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda text, fraction: bar.update(task, description=f"{text} {name}", completed=fraction)


def _nothing(text: str, fraction: float) -> None:
    pass
