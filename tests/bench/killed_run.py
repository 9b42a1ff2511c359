"""Runs that are killed: ``python killed_run.py FOLDER SEED`` forks a run again and again and kills it, then ends one.

A process of its own, because what is forked must have one thread. Writes what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.bench.runs import PLAN, asked, identity, stand_in
from vtprune.bench.run import run
from vtprune.bench.store import Store
from vtprune.cli.error import UserError

QUESTIONS, CLIPS, BATCH, KILLS = 120, 21, 4, 6


def one_run(folder: Path) -> None:
    with Store.open(folder, identity()) as store:
        run(PLAN, store, asked(QUESTIONS, CLIPS), batch=BATCH, options={"worker": stand_in(wait=0.002)})


def begun(folder: Path) -> int:
    """The process id of a run that is going on beside this process."""
    before = size(folder)
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")
        try:
            one_run(folder)
        finally:
            os._exit(0)
    while size(folder) == before:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise RuntimeError("a run ended by itself, before it had stored anything")
        time.sleep(0.001)
    return child


def size(folder: Path) -> int:
    path = folder / "rows.jsonl"
    return path.stat().st_size if path.exists() else 0


def main(folder: Path, seed: int) -> None:
    rng, seen, refused = random.Random(seed), [], ""
    for i in range(KILLS):
        child = begun(folder)
        if i == 0:
            try:
                Store.open(folder, identity())
            except UserError as error:
                refused = str(error).replace(str(child), "CHILD")
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        path = folder / "rows.jsonl"
        if i % 2:
            # as if the power had failed while a line was being written
            os.truncate(path, size(folder) - rng.randint(1, 60))
        content = path.read_bytes()
        seen.append(content[: content.rfind(b"\n") + 1].decode())
    one_run(folder)
    json.dump({"seen": seen, "refused": refused}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
