"""Trains the embedded video model from nothing: ``python -m vtprune.embedded.train_video --out DIR``.

Three stages. First the vision tower alone (see ``train_video_tower``). Then the tower is frozen and the decoder learns
to answer questions about its features of ever new clips (see ``train_video_answers``), at last of clips that are much
longer, and of single frames (see ``train_video_long``).
All stages go on from the checkpoints found in DIR; with larger budgets than before, they are trained further.
"""

from vtprune.embedded import train_video_answers as second
from vtprune.embedded import train_video_long as third
from vtprune.embedded import train_video_tower as first
from vtprune.embedded.clips import FRAMES, LONG, SIDE
from vtprune.embedded.training_run import begin, surroundings, write_facts
from vtprune.embedded.video_architecture import GRID, VOCABULARY, build_video_model, save_video


def main() -> None:
    stages = {
        "tower": (16, "training time of the first stage"),
        "answer": (50, "and of the second, its pool excluded"),
        "long": (48, "and of the third"),
    }
    options = begin(__doc__, stages, 1500, "clips of the second stage at a time")
    model = build_video_model()
    model.set_attn_implementation("eager")  # torch's fused attention is slow to differentiate on a CPU
    facts = {
        "parameters": model.num_parameters(),
        "tower_parameters": model.model.visual.num_parameters(),
        "layers": model.config.text_config.num_hidden_layers,
        "grid": GRID,
        "side": SIDE,
        "frames": FRAMES,
        "long": LONG,
        "words": len(VOCABULARY),
        "pool_middle": second.pool_size(options.pool, 2 * FRAMES),
        "pool_long": second.pool_size(options.pool, LONG),
        "tower_clips": first.CLIPS,
        "tower_slices": first.CLIPS * first.SLICES,
        "closer": 100 * second.CLOSER_UNTIL,
        "closer_tokens": second.CLOSER_TOKENS,
        "guided": 100 * second.GUIDED_UNTIL,
        "word_layer": second.WORD_LAYER,
        "cue_layer": second.CUE_LAYER,
        "evidence_layer": second.EVIDENCE_LAYER,
        **surroundings(options),
    }
    steps, seconds = first.train_video_tower(model, options.out / "tower.safetensors", minutes=options.tower_minutes)
    facts |= {"tower_steps": steps, "tower_minutes": seconds / 60}
    answers = options.out / "answers.safetensors"
    steps, seconds = second.train_video_answers(model, answers, minutes=options.answer_minutes, pool=options.pool)
    facts |= {"answer_steps": steps, "answer_minutes": seconds / 60}
    steps, seconds = third.train_video_long(model, options.out / "long.safetensors", minutes=options.long_minutes)
    facts |= {"long_steps": steps, "long_minutes": seconds / 60}
    save_video(model, options.out / "model")
    write_facts(options.out / "model", facts)


if __name__ == "__main__":
    main()
