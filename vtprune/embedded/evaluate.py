"""Accuracy of the embedded image model on scenes it was not trained on: ``python -m vtprune.embedded.evaluate``.

Every answer goes through the stock path, chat template, processor and ``model.generate``; what it says beside the
picture of another scene, a grey picture or none at all shows how much it owes to the picture. Writes the model's card.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from vtprune.embedded import image_path, load_image
from vtprune.embedded.architecture import MEAN
from vtprune.embedded.asking import most_frequent, replies, tally
from vtprune.embedded.card import card, interval
from vtprune.embedded.drawing import SIZE
from vtprune.embedded.scenes import KINDS, Question, make_scene

LOG = logging.getLogger(__name__)
CONDITIONS = ("picture", "wrong picture", "grey picture", "no picture")
BATCH = 64
FIRST_SEED = 1000  # earlier scenes of the test split were looked at while the training was being tuned
PRIOR_SCENES = 1500  # of the training split, for the most frequent answer to each question


@dataclass(frozen=True)
class Asked:
    """A question with the picture of its scene, that of another scene, and which scene it is about."""

    question: Question
    picture: Image.Image
    wrong: Image.Image
    scene: int


def held_out(n_scenes: int, first_seed: int = FIRST_SEED) -> list[Asked]:
    """All questions about ``n_scenes`` scenes of the test split; the wrong picture is that of the next scene."""
    scenes = [make_scene(first_seed + i, "test") for i in range(n_scenes)]
    following = [*scenes[1:], scenes[0]]
    return [
        Asked(question, scene.image, other.image, i)
        for i, (scene, other) in enumerate(zip(scenes, following, strict=True))
        for question in scene.questions
    ]


def show(asked: Asked, condition: str) -> Image.Image | None:
    """The picture that goes with the question under one of ``CONDITIONS``."""
    grey = Image.new("RGB", (SIZE, SIZE), tuple(round(255 * value) for value in MEAN))
    return {"picture": asked.picture, "wrong picture": asked.wrong, "grey picture": grey, "no picture": None}[condition]


def answers(model, processor, pairs: list[tuple[Image.Image | None, str]], batch: int = BATCH) -> Iterator[str]:
    """The model's greedy answers to (picture or None, question) pairs; all pairs or none must have a picture."""
    return replies(model, processor, pairs, "image", batch)


def measure(model, processor, n_scenes: int, conditions: tuple[str, ...] = CONDITIONS) -> dict[str, dict]:
    """{kind, and "all": {"n": questions, condition: right answers, "most frequent answer": right answers}}."""
    everything = held_out(n_scenes)
    said = {
        condition: list(answers(model, processor, [(show(a, condition), a.question.text) for a in everything]))
        for condition in conditions
    }
    questions = [a.question for a in everything]
    seen = (question for seed in range(PRIOR_SCENES) for question in make_scene(seed, "train").questions)
    said["most frequent answer"] = most_frequent(questions, seen)
    return tally(questions, said, KINDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=150, help="number of scenes of the test split")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    rows = measure(*load_image(), options.scenes)
    for kind, row in rows.items():
        low, high = interval(row["picture"], row["n"])
        shares = ", ".join(f"{name} {100 * row[name] / row['n']:.1f} %" for name in row if name != "n")
        LOG.info(f"{kind}: n {row['n']}, {shares} (picture: {100 * low:.1f} to {100 * high:.1f})")
    facts = json.loads((image_path() / "training.json").read_text())
    command = f"python -m vtprune.embedded.evaluate --scenes {options.scenes}"
    (image_path() / "README.md").write_text(card(rows, facts, range(FIRST_SEED, FIRST_SEED + options.scenes), command))


if __name__ == "__main__":
    main()
