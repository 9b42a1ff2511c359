"""``vtprune sinks``: the dimensions in which a model's attention sinks are massive, found on a few texts, to a file."""

from __future__ import annotations

import argparse

from vtprune.cli.error import UserError

HELP = "find the dimensions of a model's attention sinks and keep them in a file for vtprune run --sinks"

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Please describe the picture in one sentence.",
    "In 1969 people walked on the moon for the first time.",
    "Water boils at a lower temperature in the mountains, because the air is thinner there.",
)
"""Texts of several kinds; only their first token is looked at, which sees nothing else."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder")
    add("--out", required=True, metavar="FILE", help="where the dimensions go, as JSON; replaces FILE")
    add("--prompt", action="append", metavar="TEXT", help="a text to look at; repeatable (default: four short ones)")
    add("--tau", type=float, default=20.0, metavar="T", help="how many times its RMS is massive (default: 20)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: float32 on a CPU)")


def run(arguments: argparse.Namespace) -> int:
    """Calibrates, writes the file, prints the dimensions."""
    from vtprune.cli.console import check_writable, say, status

    check_writable("--out", arguments.out)
    prompts = arguments.prompt or list(PROMPTS)
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("--prompt is a text of one word or more")
    # transformers is loaded from here on
    from vtprune.cli.quiet import quiet_transformers
    from vtprune.models import load
    from vtprune.sinks import SinkDetector

    with quiet_transformers(), status(f"loading {arguments.model}"):
        loaded = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
        tokenizer = loaded.processor.tokenizer
        found = SinkDetector.calibrate(loaded.model, prompts, tokenizer=tokenizer, tau=arguments.tau)
    found.save(arguments.out)
    say(f"Sinks of {arguments.model} are massive in dimensions {', '.join(map(str, found.dims))}, tau {found.tau:g}.")
    say(f"Written: {arguments.out}")
    return 0
