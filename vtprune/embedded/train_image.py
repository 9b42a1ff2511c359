"""Trains the embedded image model from nothing: ``python -m vtprune.embedded.train_image --out DIR``.

Two stages. First the CLIP tower alone (see ``train_tower``). Then the tower is frozen, the features of a pool of
scenes are kept in bfloat16, and projector and decoder learn to answer questions about them (see ``train_answers``).
Both stages go on from the checkpoints found in DIR; with larger budgets than before, they are trained further.
"""

from vtprune.embedded import train_answers as second
from vtprune.embedded import train_tower as first
from vtprune.embedded.architecture import GRID, VOCABULARY, build_model, save
from vtprune.embedded.drawing import SIZE
from vtprune.embedded.training_run import begin, surroundings, write_facts


def main() -> None:
    stages = {
        "tower": (40, "training time of the first stage"),
        "answer": (30, "and of the second, its pool excluded"),
    }
    options = begin(__doc__, stages, 3500, "scenes of the second stage")
    model = build_model()
    # torch's fused attention is slow to differentiate on a CPU: half of a step's time in the first stage
    model.set_attn_implementation("eager")
    facts = {
        "parameters": model.num_parameters(),
        "layers": model.config.text_config.num_hidden_layers,
        "grid": GRID,
        "size": SIZE,
        "words": len(VOCABULARY),
        "tower_batch": first.BATCH,
        "answer_batch": second.BATCH,
        "closer": 100 * second.CLOSER_UNTIL,
        "closer_tokens": second.CLOSER_TOKENS,
        "guided": 100 * second.GUIDED_UNTIL,
        "layer": second.GUIDED_LAYER,
        **surroundings(options),
    }
    steps, seconds = first.train_tower(model, options.out / "tower.safetensors", minutes=options.tower_minutes)
    facts |= {"tower_steps": steps, "tower_minutes": seconds / 60}
    answers = options.out / "answers.safetensors"
    steps, seconds = second.train_answers(model, answers, minutes=options.answer_minutes, pool=options.pool)
    facts |= {"answer_steps": steps, "answer_minutes": seconds / 60}
    save(model, options.out / "model")
    write_facts(options.out / "model", facts)


if __name__ == "__main__":
    main()
