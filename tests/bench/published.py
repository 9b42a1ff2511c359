"""Small data sets in the formats in which the real ones are published."""

import json
from pathlib import Path

import pytest

from tests.video.clips import drawn, numbers, write
from vtprune.bench.question import Grade
from vtprune.bench.tasks import Scored


def clip_file(path: Path, count: int = 20) -> Path:
    """A clip whose frames show their numbers, thirty a second, under any name."""
    pytest.importorskip("av", reason="the clips of these tests are made with PyAV (pip install av)")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(path.suffix.lower() + ".part" + path.suffix.lower())
    write(made, count=count, codec="mpeg4" if made.suffix == ".avi" else "libx264")
    return made.rename(path)


def gif_file(path: Path, count: int = 6) -> Path:
    """An animated GIF of such frames, ten a second."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(drawn(number)) for number in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def frame_folder(path: Path, count: int) -> Path:
    """00001.jpg, 00002.jpg, ...; the first shows 0."""
    from PIL import Image

    path.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(drawn(number)).save(path / f"{number + 1:05d}.jpg", quality=95)
    return path


def parquet_file(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="these tasks are published as parquet (pip install pyarrow)")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def json_file(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path


def seen(question, frames: int) -> list[int]:
    """The numbers on the frames that a question's only clip shows."""
    (visual,) = question.visuals
    assert visual.kind == "video"
    return numbers(visual.load(frames))


def figures(task, questions, scores) -> dict[str, float]:
    """The metrics of answers that got these scores."""
    return task.metrics([Scored(one, Grade("A", score)) for one, score in zip(questions, scores, strict=True)])
