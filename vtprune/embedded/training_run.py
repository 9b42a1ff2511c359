"""What the scripts that train the embedded models share: their options, where they run, and what they leave behind."""

import argparse
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SEED = 0


def begin(description: str | None, minutes: Mapping[str, tuple[float, str]], pool: int, pooled: str) -> Any:
    """Reads the command line and sets up logging, threads, seed and folder.

    minutes: by stage, how long it trains and the help that says so; the option is --STAGE-minutes.
    pool:    how many ``pooled`` of the second stage are kept.
    """
    parser = argparse.ArgumentParser(description=description)
    for stage, (budget, text) in minutes.items():
        parser.add_argument(f"--{stage}-minutes", type=float, default=budget, help=text)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints and of the trained model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pool", type=int, default=pool, help=pooled)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def surroundings(options: Any) -> dict[str, Any]:
    """What of a run does not depend on the model."""
    about = {"pool": options.pool, "threads": options.threads, "seed": SEED}
    return about | {"cpu": cpu_name(), "torch": torch.__version__}


def cpu_name() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what the model's card needs to know beside its weights."""
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
