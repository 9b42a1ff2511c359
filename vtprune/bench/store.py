"""A result folder: what a run is (``run.json``) and one line for each answer (``rows.jsonl``), never mixed, never lost.

A process may be killed at any moment: an answer is in the file or it is not, and the next run into the folder goes on
where the last one stopped. Nothing is deleted: rows of another run are set aside under another name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vtprune.bench.identity import FORMAT, Identity, differences
from vtprune.bench.lines import Lines, heal, read_lines, sync_folder
from vtprune.bench.lock import Lock
from vtprune.cli.error import UserError

RUN, ROWS = "run.json", "rows.jsonl"
RECORDS = (ROWS, "times.jsonl", "recheck.jsonl")
"""The files of lines that belong to a run."""

Key = tuple[str, str, str]


class Store:
    """A result folder that this process may write into. Made by ``Store.open``; a context that ends with ``close``.

    folder: where it is. notes: what was healed or set aside when it was opened, in sentences. values: of ``run.json``.
    """

    def __init__(self, folder: Path, lock: Lock):
        self.folder, self.notes, self.values = folder, [], {}
        self._lock, self._lines = lock, {}
        self._failed: dict[Key, bool] = {}

    @classmethod
    def open(cls, folder: str | Path, identity: Identity, *, fresh: bool = False) -> Store:
        """Makes a result folder, or goes on with one whose answers are comparable with those of ``identity``.

        fresh: what is there is set aside first, as ``rows-DATE.jsonl`` and so on.
        Raises UserError where another run is writing, where something changed (it says what), and for damaged files.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out is a folder; {folder} is a file; choose another")
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, Lock(folder))
        with ExitStack() as undo:
            undo.callback(store.close)
            store._begin(identity, fresh)
            undo.pop_all()
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and lets the next run in."""
        for lines in self._lines.values():
            lines.close()
        self._lock.release()

    def done(self, retry_failed: bool = False) -> set[Key]:
        """(task, question, condition) of every row there is; with ``retry_failed``, of those that are no failures."""
        return {key for key, failed in self._failed.items() if not (failed and retry_failed)}

    def failures(self) -> int:
        """How many questions failed under a condition, counting the newest row of each."""
        return sum(self._failed.values())

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows; when it returns, they are on the disk.

        A row of a question and condition that failed before is added too; of such rows the last is the one that counts.
        Raises ValueError, with nothing written, for any other row that is there already.
        """
        added: dict[Key, bool] = {}
        for row in rows:
            key = key_of(row)
            if key in added or self._failed.get(key) is False:
                raise ValueError(f"there is a row already for {' / '.join(key)}; a question is answered once")
            added[key] = row.get("error") is not None
        self._file(ROWS).append(rows)
        self._failed.update(added)

    def record(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines to another file of the run, one of ``RECORDS``."""
        if name == ROWS or name not in RECORDS:
            raise ValueError(f"records go to {' or '.join(RECORDS[1:])}; got {name!r}")
        self._file(name).append(records)

    def recorded(self, name: str) -> list[dict[str, Any]]:
        """The lines of another file of the run."""
        path = self.folder / name
        return [record for _, record in read_lines(path)] if path.exists() else []

    def remember(self, name: str, value: Any) -> None:
        """Puts a value into ``run.json``."""
        self.values = {**self.values, name: value}
        _write_run(self.folder, self.values)

    def _file(self, name: str) -> Lines:
        return self._lines.setdefault(name, Lines(self.folder / name))

    def _begin(self, identity: Identity, fresh: bool) -> None:
        if fresh:
            self._set_aside()
        new, old = identity.values(), read_run(self.folder)
        if old is None and (self.folder / ROWS).exists():
            raise UserError(
                f"{self.folder} holds {ROWS} but no {RUN} that says what they are; choose another --out, or --fresh, "
                f"which sets them aside as {ROWS.replace('.', '-DATE.')}"
            )
        changed = [] if old is None else differences(old, new)
        if changed:
            raise UserError(
                f"{self.folder} holds answers of another run, which must not be mixed with these: "
                f"{'; '.join(changed)}. Choose another --out, or --fresh, which sets the old ones aside as "
                f"{ROWS.replace('.', '-DATE.')}"
            )
        self.notes += [text for name in RECORDS if (text := heal(self.folder / name))]
        self._read_rows()
        self.values = _joined(old, new)
        _write_run(self.folder, self.values)

    def _read_rows(self) -> None:
        path = self.folder / ROWS
        if not path.exists():
            return
        for number, row in read_lines(path):
            try:
                key, failed = key_of(row), row.get("error") is not None
            except ValueError as error:
                raise UserError(f"{path} line {number} is no row of a run: {error}; remove that line") from error
            if self._failed.get(key) is False:
                raise UserError(f"{path} line {number} repeats {' / '.join(key)}; remove that line")
            self._failed[key] = failed

    def _set_aside(self) -> None:
        date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        # the run last: without it the rows would be nobody's if this is interrupted
        there = [self.folder / name for name in (*RECORDS, RUN) if (self.folder / name).exists()]
        taken = {path.stem for path in self.folder.iterdir()}
        names = [date, *(f"{date}-{i}" for i in range(2, 1000))]
        free = next(name for name in names if not any(f"{path.stem}-{name}" in taken for path in there))
        for path in there:
            path.rename(path.with_stem(f"{path.stem}-{free}"))
        if there:
            moved = ", ".join(f"{path.stem}-{free}{path.suffix}" for path in there)
            self.notes.append(f"what was in {self.folder} is set aside as {moved}")


def key_of(row: Mapping[str, Any]) -> Key:
    """(task, question, condition) of a row. Raises ValueError where one is missing or no text."""
    key = tuple(row.get(name) for name in ("task", "question", "condition"))
    if not all(isinstance(part, str) for part in key):
        raise ValueError(f"a row names its task, question and condition; got {key}")
    return key


def read_run(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; None where there is none. Raises UserError where it cannot be read."""
    path = folder / RUN
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it, or set all aside with --fresh") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path} has format {said!r} and this vtprune writes {FORMAT}; choose another --out")
    return found


def _joined(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder is after a run into it: the tasks and conditions of both, and in ``later`` what came later."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if old is None:
        return {**new, "started": now}
    tasks = dict(old["tasks"])
    for spec, task in new["tasks"].items():
        # fewer questions are some of those that were asked before
        asked = max(task.get("questions", 0), tasks.get(spec, {}).get("questions", 0))
        tasks[spec] = {**task, "questions": asked}
    conditions = old["conditions"] + [one for one in new["conditions"] if one not in old["conditions"]]
    later = [*old.get("later", []), {"command": new["command"], "started": now, "settings": new["settings"]}]
    return {**old, "tasks": tasks, "conditions": conditions, "later": later}


def _write_run(folder: Path, values: Mapping[str, Any]) -> None:
    """Replaces ``run.json`` in one step."""
    half = folder / f"{RUN}.new"
    with half.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    half.replace(folder / RUN)
    sync_folder(folder)
