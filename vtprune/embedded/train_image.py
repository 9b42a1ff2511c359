"""Trains the embedded image model from nothing: ``python -m vtprune.embedded.train_image --out DIR``.

Two stages. First the CLIP tower alone (see ``train_tower``). Then the tower is frozen, the features of a pool of
scenes are kept in bfloat16, and projector and decoder learn to answer questions about them (see ``train_answers``).
Both stages go on from the checkpoints found in DIR; with larger budgets than before, they are trained further.
"""

import argparse
import json
import logging
import platform
from pathlib import Path

import torch

from vtprune.embedded import train_answers as second
from vtprune.embedded import train_tower as first
from vtprune.embedded.architecture import GRID, VOCABULARY, build_model, save
from vtprune.embedded.drawing import SIZE

SEED = 0


def cpu_name() -> str:
    """What the machine calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower-minutes", type=float, default=40, help="training time of the first stage")
    parser.add_argument("--answer-minutes", type=float, default=30, help="and of the second, its pool excluded")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints and of the trained model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pool", type=int, default=3500, help="scenes of the second stage")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.out.mkdir(parents=True, exist_ok=True)
    model = build_model()
    # torch's fused attention is slow to differentiate on a CPU: half of a step's time in the first stage
    model.set_attn_implementation("eager")
    facts = {
        "parameters": model.num_parameters(),
        "layers": model.config.text_config.num_hidden_layers,
        "grid": GRID,
        "size": SIZE,
        "words": len(VOCABULARY),
        "pool": options.pool,
        "threads": options.threads,
        "tower_batch": first.BATCH,
        "answer_batch": second.BATCH,
        "closer": 100 * second.CLOSER_UNTIL,
        "closer_tokens": second.CLOSER_TOKENS,
        "guided": 100 * second.GUIDED_UNTIL,
        "layer": second.GUIDED_LAYER,
        "seed": SEED,
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }
    steps, seconds = first.train_tower(model, options.out / "tower.safetensors", minutes=options.tower_minutes)
    facts |= {"tower_steps": steps, "tower_minutes": seconds / 60}
    answers = options.out / "answers.safetensors"
    steps, seconds = second.train_answers(model, answers, minutes=options.answer_minutes, pool=options.pool)
    facts |= {"answer_steps": steps, "answer_minutes": seconds / 60}
    save(model, options.out / "model")
    (options.out / "model" / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
