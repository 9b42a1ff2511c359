"""A picture inside a parquet file, which is read when it is shown and not before."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from vtprune.bench.files import picture


@dataclass(frozen=True)
class Stored:
    """Makes the picture in one row of a parquet file: a data set of gigabytes needs no more memory than its questions.

    folder: of the data set, for cells that name a file. name: for errors. column: that with the pictures, one or a list
            of one in each row.
    """

    path: Path
    row: int
    folder: Path
    name: str
    column: str = "image"

    def __call__(self) -> Image.Image:
        starts = _starts(self.path)
        group = bisect_right(starts, self.row) - 1
        cell = _cells(self.path, group, self.column)[self.row - starts[group]].as_py()
        return picture(cell[0] if isinstance(cell, list) else cell, self.folder, self.name).load()


@lru_cache(maxsize=256)
def _starts(path: Path) -> list[int]:
    """The first row of each group of rows."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        groups = file.metadata
        sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    return list(accumulate(sizes[:-1], initial=0))


# questions are asked in the order of the files; the second one is of the control that shows another question's picture
@lru_cache(maxsize=2)
def _cells(path: Path, group: int, column: str) -> Any:
    """The cells of a column in a group of rows, which are usually a hundred."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)
