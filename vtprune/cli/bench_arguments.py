"""The arguments of ``vtprune bench``: what they are, what is filled in, what is refused before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.cli.error import UserError, did_you_mean

DESCRIPTION = """Asks a model all questions of one task or several: unpruned, under each policy at each ratio, and under
controls. Every answer is a line of rows.jsonl in the folder --out. The same command goes on with an interrupted run."""

EMBEDDED_IMAGE, EMBEDDED_VIDEO = "embedded-image", "embedded-video"

RATIOS = "0.5,0.25,0.1"
FRAMES = 32
"""Frames of a clip where nothing else is said; of the clips that ship all."""

EXAMPLE_LIMIT, EXAMPLE_RATIOS, EXAMPLE_BATCH = 100, "0.25", 20
"""What is asked of an embedded model where nothing is said at all, and how many questions go in together."""

ENGINES = ("local", "ray")

COMMANDS = {"run": 0, "report": 1, "compare": 2}
"""What can be done, and the folders that it is about; "run" is not written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command and of its own commands."""
    parser.description = DESCRIPTION
    _arguments_about_questions(parser.add_argument_group("what is asked").add_argument)
    _arguments_about_conditions(parser.add_argument_group("what is compared").add_argument)
    _arguments_about_results(parser.add_argument_group("results").add_argument)
    _arguments_about_running(parser.add_argument_group("the model and the machines").add_argument)
    _arguments_about_folders(parser)


def _arguments_about_folders(parser: argparse.ArgumentParser) -> None:
    # no parsers of their own: beside those, argparse takes the value of a mistyped option for a command
    parser.add_argument(
        "command",
        nargs="*",
        metavar="COMMAND DIR",
        help="report DIR: tables and plots of a result folder, as Markdown and HTML; compare DIR DIR: two of them, "
        "question by question; without: a run",
    )
    add = parser.add_argument_group("report and compare").add_argument
    add("--no-plots", dest="plots", action="store_false", help="report: without plots, which need matplotlib")
    add("--row", nargs="+", default=[], metavar="ROW", help='compare: "fastv@0.25", or two, "fastv@0.25 vs pool@0.25"')
    add("--force", action="store_true", help="compare: although a task is not the same in both")


def read_command(words: Sequence[str]) -> tuple[str, list[Path]]:
    """("run", "report" or "compare", the folders that it is about). Raises UserError."""
    name, *folders = words or ["run"]
    if name not in COMMANDS or (name == "run" and words):
        hint = did_you_mean(name, list(COMMANDS)[1:])
        raise UserError(f"vtprune bench takes options, or report DIR, or compare DIR DIR; {hint}got {name!r}")
    if len(folders) != COMMANDS[name]:
        wanted = " ".join([name, *["DIR"] * COMMANDS[name]])
        raise UserError(f"it is vtprune bench {wanted}, result folders as --out was; got {len(folders)} folders")
    return name, [Path(folder) for folder in folders]


def _arguments_about_questions(add: Any) -> None:
    add(
        "--task",
        nargs="+",
        action="extend",
        metavar="NAME[:OPTION=VALUE]",
        help="a task or several, see --list-tasks (default: that of the embedded model)",
    )
    add("--data", metavar="DIR", help="each task's files, as published, in DIR/NAME; or say NAME:folder=PATH")
    add("--frames", metavar="N", help=f"frames of each clip, spread evenly, or all (default: {FRAMES})")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="so many questions of each task, a sample spread evenly over it and not the first N (default: all)",
    )
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: what the task says)")
    add("--list-tasks", action="store_true", help="list the tasks and their options, and do nothing else")


def _arguments_about_conditions(add: Any) -> None:
    add(
        "--policy",
        nargs="+",
        action="extend",
        metavar="NAME[:OPTION=VALUE]",
        help="a policy or several, see vtprune policies; fastv:layer=3:positions=compact (default: fastv; of clips "
        "framefusion)",
    )
    add("--keep-ratio", metavar="R,R", help=f"fractions of visual tokens kept; 1 is unpruned (default: {RATIOS})")
    add(
        "--budget",
        choices=("tokens", "flops"),
        default="tokens",
        help="what --keep-ratio R is of: tokens, as each policy means it (the default); flops: every policy costs the "
        "decoder what R of the visual tokens cost in all layers, as the controls do",
    )
    add(
        "--controls",
        default="all",
        metavar="NAMES",
        help="all, none, or some of blind, other, random, twin, uniform, pool, downsampled, fewer-frames, same-time "
        "(default: all)",
    )
    add(
        "--scorer",
        default="self",
        metavar="FOLDER",
        help="rates frames for policies that go by it, such as quota: a model folder, or self (default)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the sample and of random tokens (default: 0)")
    add(
        "--times",
        action=argparse.BooleanOptionalAction,
        help="time a few answers of each condition (default: yes, but not without --task)",
    )


def _arguments_about_results(add: Any) -> None:
    add("--out", metavar="DIR", help="the result folder (default: bench-MODEL); a run into it goes on where it stopped")
    add("--fresh", action="store_true", help="set the rows aside that are there (rows-DATE.jsonl), and begin anew")
    add("--retry-failed", action="store_true", help="ask again what failed")
    add("--json", nargs="?", const="-", metavar="FILE", help="the summary as JSON, to FILE or instead of the tables")


def _arguments_about_running(add: Any) -> None:
    add(
        "--model",
        default=EMBEDDED_IMAGE,
        metavar="FOLDER",
        help="a model folder, embedded-image (the default) or embedded-video",
    )
    add("--batch", type=int, metavar="N", help=f"questions that go in together (default: 1; embedded: {EXAMPLE_BATCH})")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: float32 on a CPU)")
    add("--attn", metavar="NAME", help="sdpa, eager, flash_attention_2 or flex_attention")
    add("--engine", default="local", metavar="NAME", help="local (this process, the default) or ray (many workers)")
    add("--address", help="with ray: a cluster that runs, such as auto (default: workers on this machine)")
    add("--workers", type=int, metavar="N", help="with ray: how many, one model each")
    add("--gpus-per-worker", type=float, metavar="X", help="with ray: 0.5 puts two models on a GPU")


def fill_in(arguments: argparse.Namespace) -> None:
    """What is not said: the task of an embedded model, policies that suit it, and for what ships small numbers."""
    if arguments.model == "embedded":
        arguments.model = EMBEDDED_IMAGE
    embedded = arguments.model in (EMBEDDED_IMAGE, EMBEDDED_VIDEO)
    if not arguments.task:
        if not embedded:
            raise UserError("--task says what is asked; see vtprune bench --list-tasks")
        arguments.task = [arguments.model]
        arguments.limit = EXAMPLE_LIMIT if arguments.limit is None else arguments.limit
        arguments.keep_ratio = EXAMPLE_RATIOS if arguments.keep_ratio is None else arguments.keep_ratio
        arguments.times = bool(arguments.times)
    arguments.keep_ratio = RATIOS if arguments.keep_ratio is None else arguments.keep_ratio
    arguments.batch = (EXAMPLE_BATCH if embedded else 1) if arguments.batch is None else arguments.batch
    arguments.times = arguments.times is not False
    own_clips = all(spec.partition(":")[0] == EMBEDDED_VIDEO for spec in arguments.task)
    usual = "all" if own_clips else str(FRAMES)
    arguments.frames = usual if arguments.frames is None else arguments.frames
    arguments.out = arguments.out or f"bench-{Path(arguments.model).resolve().name}"


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine's options. Raises UserError for what can be told to be wrong before anything is read."""
    from vtprune.cli.console import STDOUT, check_writable
    from vtprune.models import read_device, read_dtype

    for option in ("limit", "batch", "max_new_tokens", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is 1 or more; got {value}")
    if arguments.engine not in ENGINES:
        hint = did_you_mean(arguments.engine, ENGINES)
        raise UserError(f"--engine is {' or '.join(ENGINES)}; {hint}got {arguments.engine!r}")
    options = {name: getattr(arguments, name) for name in ("address", "workers", "gpus_per_worker")}
    said = [name for name, value in options.items() if value is not None]
    if said and arguments.engine != "ray":
        raise UserError(f"--{said[0].replace('_', '-')} goes with --engine ray; this is --engine {arguments.engine}")
    read_dtype(arguments.dtype, read_device(arguments.device))
    if arguments.json and arguments.json != STDOUT:
        check_writable("--json", arguments.json)
    return {} if arguments.engine == "local" else options


def read_frames_option(text: str) -> int | None:
    """Frames of a clip; None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--frames is the number of frames of each clip, 1 or more, or all; got {text!r}")
    return int(text)
