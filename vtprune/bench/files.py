"""Reads what data sets are published in: records from parquet, JSON and tables; pictures in cells; videos by name."""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtprune.bench.question import Visual

CELL_LIMIT = 1 << 30
"""Characters in one cell of a table: pictures in base64 take millions."""

VIDEO_ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov", ".gif")

BATCH = 64
"""Records of a parquet file that are in memory at a time."""

_LONGEST_PATH = 1024
# how the files of pictures begin: JPEG, PNG, GIF, BMP, TIFF (twice); WebP is told by its second word
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in its order, one at a time where the format allows.

    path: .parquet; .jsonl with an object a line; .json with a list of objects, or an object with exactly one list among
          its values; .tsv or .csv with a header, whose cells are all text.

    Raises ValueError that names the file and the line for what is not so; ImportError for parquet without pyarrow.
    """
    kinds = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json, ".tsv": _table, ".csv": _table}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path} has none of the endings that are read: {', '.join(kinds)}")
    yield from kinds[path.suffix.lower()](path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"reading {path.name} needs pyarrow: pip install 'vtprune[bench]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet file, or a damaged one: {error}. Download it again") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for _, record in read_lines(path):
        yield record


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with the numbers of their lines, from 1; empty lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(_parsed(line, path, number), f"{path}, line {number}")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    value = _parsed(path.read_bytes(), path, 1)
    if isinstance(value, dict):
        lists = [name for name, one in value.items() if isinstance(one, list)]
        if len(lists) != 1:
            names = ", ".join(map(repr, lists)) or "none"
            raise ValueError(f"{path} holds an object; exactly one of its values may be a list, and {names} is")
        value = value[lists[0]]
    if not isinstance(value, list):
        raise ValueError(f"{path} holds {_kind(value)}; a list of objects is read")
    for number, record in enumerate(value, 1):
        yield _object(record, f"{path}, record {number}")


def _parsed(text: bytes, path: Path, line: int) -> Any:
    """The JSON value of a text that begins in this line of the file."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line += text.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}: no UTF-8 ({error.reason}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{where}: no JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{path}, line {line}: its brackets are nested too deeply") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{where}: {_kind(value)}; an object is read, such as {{"question": "..."}}')
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _table(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = None
        while (row := _row(reader, path)) is not None:
            if not row:
                continue
            if header is None:
                header = row
            elif len(row) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, and the header has {len(header)}: "
                    f"{', '.join(header)}"
                )
            else:
                yield dict(zip(header, row, strict=True))


def _row(reader: Any, path: Path) -> list[str] | None:
    """The next row; the limit of a cell is the process's, so it is raised for this row only."""
    before = csv.field_size_limit(CELL_LIMIT)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no table: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, after line {reader.line_num}: no UTF-8 ({error.reason}); save it as UTF-8") from None
    finally:
        csv.field_size_limit(before)


def find_one(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match the first of these glob patterns that any file matches, sorted.

    Raises ValueError that names what was looked for.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the one that the data set was saved to")
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise ValueError(f"{folder} has no {' and no '.join(patterns)}; is it the folder that the data set was saved to?")


def need(record: Mapping[str, Any], *fields: str, where: str) -> tuple[Any, ...]:
    """The values of these fields, in this order, one or more. A field that is None counts as missing.

    where: what the error calls the record, such as "test.jsonl, line 3".

    Raises ValueError that names the fields that are missing and those that are there.
    """
    missing = [name for name in fields if record.get(name) is None]
    if missing:
        there = [str(name) for name, value in record.items() if value is not None]
        raise ValueError(f"{where} has no {', '.join(map(repr, missing))}; it has {', '.join(there) or 'nothing'}")
    return tuple(record[name] for name in fields)


def picture(cell: Any, folder: Path, name: str) -> Visual:
    """The picture that a cell holds or names; a file is not looked at before ``load``.

    cell: {"bytes": ..., "path": ...} as Hugging Face writes pictures, bytes, base64 text with or without "data:...;",
          or the path of a file relative to ``folder``.

    Raises ValueError for anything else.
    """
    if isinstance(cell, Mapping):
        if cell.get("bytes") is None and not isinstance(cell.get("path"), str):
            raise ValueError(f'{name}: neither "bytes" nor "path" says what the picture is; it has {", ".join(cell)}')
        cell = cell["path"] if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, bytes):
        return Visual("image", cell, name)
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{name}: a picture is bytes, base64 or the path of a file; got {str(cell)[:40]!r}")
    text = cell.strip()
    kind, comma, content = text.partition(",")
    if comma and kind.startswith("data:") and kind.endswith(";base64"):
        return Visual("image", _decoded(content, name), name)
    # the base64 of a JPEG begins with "/9j/" and so looks like a path
    if _begins_like_a_picture(text) and not (len(text) <= _LONGEST_PATH and (folder / text).is_file()):
        return Visual("image", _decoded(text, name), name)
    if len(text) > _LONGEST_PATH:
        raise ValueError(f"{name}: a text of {len(text)} characters is no path, and not the base64 of a picture")
    return Visual("image", folder / text, name)


def _begins_like_a_picture(text: str) -> bool:
    try:
        head = base64.b64decode(text[:16], validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(text) > 64 and (head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"))


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: damaged base64: {error}") from None


def video(folder: Path, stem_or_name: str, places: Sequence[str], endings: Sequence[str] = VIDEO_ENDINGS) -> Path:
    """Where a video lies: a file with its published name as it is or with one of the endings, or a folder of frames.

    stem_or_name: with or without an ending; another ending than the published one is found too.
    places:       folders inside ``folder`` in which it may be, the likeliest first; "." for ``folder`` itself.

    Raises ValueError that names what was tried.
    """
    own = next((ending for ending in endings if stem_or_name.lower().endswith(ending.lower())), "")
    stem = stem_or_name[: len(stem_or_name) - len(own)]
    names = list(dict.fromkeys([stem_or_name, *(stem_or_name + ending for ending in endings)]))
    names += [stem + ending for ending in endings if own and stem + ending not in names]
    for place in places:
        for name in names:
            path = folder / place / name
            if path.is_file():
                return path
        for name in dict.fromkeys([stem_or_name, stem]):
            path = folder / place / name
            if name and path.is_dir():
                return path
    tried = ", ".join(str(folder / place) for place in places)
    raise ValueError(
        f"there is no video {stem_or_name!r} in {tried}; tried that name, a folder of frames, and {' '.join(endings)}"
    )
