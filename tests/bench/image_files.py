"""Writes pictures and parquet files as data sets are published: pictures are structs of bytes and a path."""

import io
from pathlib import Path

from PIL import Image


def png(colour="red", size=(8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def cell(colour="red", size=(8, 6), path: str | None = None) -> dict:
    """A picture as Hugging Face stores it."""
    return {"bytes": png(colour, size), "path": path}


def write(path: Path, rows: list[dict], **types: str) -> None:
    """A parquet file with two rows a group. types: columns whose type is not what pyarrow would choose."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        at = table.schema.get_field_index(name)
        wanted = pa.list_(pa.float32()) if kind == "floats" else pa.type_for_alias(kind)
        table = table.set_column(at, name, table.column(at).cast(wanted))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
