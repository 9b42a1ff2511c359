"""``vtprune run``: a question about pictures and clips, answered with pruned visual tokens, and what that saved."""

from __future__ import annotations

import argparse
from typing import Any

from vtprune.cli.error import UserError, did_you_mean

HELP = "answer a question about pictures or clips with pruned visual tokens; without arguments, an example"

COMPARE = ("unpruned", "frames")

_HELLO = """\
A small model that ships with vtprune answers a question about a bundled {what}, once with all of its visual tokens and
once with those that a policy keeps. It is a toy: its times say little about those of large models. Yours is next:
  vtprune run --model FOLDER {next}
"""

_NEXT = {
    "picture": '--image picture.jpg --prompt "What is this?" --compare --overlay kept.png',
    "clip": '--video clip.mp4 --frames 64 --prompt "What happens?" --compare frames --overlay sheet.png',
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    _arguments_about_inputs(parser.add_argument_group("what is asked").add_argument)
    _arguments_about_pruning(parser.add_argument_group("pruning").add_argument)
    _arguments_about_results(parser.add_argument_group("results").add_argument)
    _arguments_about_running(parser.add_argument_group("the model").add_argument)


def _arguments_about_inputs(add: Any) -> None:
    add("--image", nargs="+", action="extend", metavar="FILE", help="one picture or several (default: a bundled one)")
    add(
        "--video",
        nargs="*",
        action="extend",
        metavar="FILE",
        help="a clip or several: video, animation, or folder of pictures (without FILE: a bundled one)",
    )
    add("--frames", type=int, metavar="N", help="frames of each clip, spread evenly (default: 32; bundled clip: all)")
    add("--fps", type=float, metavar="R", help="frames of each second, instead")
    add("--partial", action="store_true", help="read what can be read of a damaged clip")
    add("--prompt", help="the question; <image> and <video> say where they go (default: pictures, clips, question)")


def _arguments_about_pruning(add: Any) -> None:
    add("--policy", metavar="NAME", help="see vtprune policies (default: fastv; for clips framefusion)")
    add("--keep-ratio", metavar="R", help="the fraction of visual tokens kept, in (0, 1]")
    add("--n-keep", metavar="N", help="the number of visual tokens kept, instead")
    add("--keep-flops", metavar="F", help="the fraction of the decoder's prefill FLOPs kept, instead, in (0, 1]")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of the policy; repeatable. budget=flops: --keep-ratio R costs what R of the tokens "
        "cost in all layers",
    )
    add("--positions", metavar="HOW", help="original or compact, instead of what the policy's method does")
    add(
        "--sinks",
        default="ignore",
        metavar="WHAT",
        help="attention sinks: ignore, exclude, drop, keep (default: ignore)",
    )
    add(
        "--sink-file",
        metavar="FILE",
        help="where they show, as vtprune sinks wrote it (default: as published, if it is)",
    )
    add("--seed", type=int, default=0, metavar="N", help="for policies that draw at random (default: 0)")


def _arguments_about_results(add: Any) -> None:
    add(
        "--compare",
        nargs="?",
        const="unpruned",
        metavar="WITH",
        help="unpruned: also without pruning (what --compare alone means, and the default for what is bundled); "
        "frames: also other frames for as many visual tokens",
    )
    add("--no-compare", dest="compare", action="store_const", const="no", help="the pruned model alone")
    add("--overlay", metavar="FILE", help="draw which parts of pictures and frames live on; replaces FILE")
    add("--json", nargs="?", const="-", metavar="FILE", help="everything as JSON, to FILE or instead of the tables")
    add("--runs", type=int, metavar="N", help="timed runs of each; 0: none (default: 3 to 9, about 3 seconds)")
    add("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default: 32)")


def _arguments_about_running(add: Any) -> None:
    add(
        "--model",
        default="embedded",
        metavar="FOLDER",
        help="a model folder, or one that ships: embedded-image, embedded-video, or embedded, which is the one of the "
        "two that fits (the default)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: float32 on a CPU)")
    add(
        "--attn",
        metavar="NAME",
        help="sdpa, eager, flash_attention_2 or flex_attention (default: transformers' choice)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Answers, measures, prints, draws."""
    fill_in(arguments)
    policy = check(arguments)
    # transformers is loaded from here on
    from vtprune.cli.answer import answer
    from vtprune.cli.console import STDOUT, say, write_json
    from vtprune.cli.inputs import read_asked
    from vtprune.cli.quiet import notes_instead_of_warnings
    from vtprune.cli.result import print_result

    with notes_instead_of_warnings():
        result, draw = answer(arguments, policy, read_asked(arguments))
    if arguments.json:
        write_json(result, arguments.json)
    if arguments.json != STDOUT:
        if result["right_answer"] is not None:
            what = "clip" if result["videos"] else "picture"
            say(_HELLO.format(what=what, next=_NEXT[what]))
        print_result(result)
    if draw is not None:
        draw()
        if arguments.json != STDOUT:
            say(f"Drawn: {arguments.overlay}")
    return 0


def fill_in(arguments: argparse.Namespace) -> None:
    """The model and the policy if none is named; for what is bundled one that suits the small models."""
    embedded, clips = arguments.model == "embedded", arguments.video is not None
    said = (
        arguments.image,
        arguments.video,
        arguments.policy,
        arguments.option,
        arguments.keep_ratio,
        arguments.n_keep,
        arguments.keep_flops,
    )
    if embedded and not any(said):
        arguments.keep_ratio = "0.25"
        if not clips:
            # its question reaches the picture in layer 2, so the attention that FastV reads means something from there
            arguments.option = ["layer=3"]
    if embedded and clips:
        arguments.model = "embedded-video"
    # what repeats from frame to frame is merged, which FastV knows nothing of
    arguments.policy = arguments.policy or ("framefusion" if clips else "fastv")


def check(arguments: argparse.Namespace) -> Any:
    """The policy of the command line. Raises for what can be told to be wrong before anything is loaded."""
    from vtprune.cli.clips import check_clips, check_one_clip
    from vtprune.cli.console import STDOUT, check_writable
    from vtprune.cli.options import make_policy
    from vtprune.cli.overlay import check_target
    from vtprune.models import read_device, read_dtype
    from vtprune.sinks import MODES, SinkDetector

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is 1 or more; got {arguments.max_new_tokens}")
    if arguments.runs is not None and arguments.runs < 0:
        raise UserError(f"--runs is 0 (no times) or more; got {arguments.runs}")
    if arguments.positions not in (None, "original", "compact"):
        raise UserError(f"--positions is original or compact; got {arguments.positions!r}")
    if arguments.compare not in (None, "no", *COMPARE):
        hint = did_you_mean(arguments.compare, COMPARE)
        raise UserError(f"--compare is {' or '.join(COMPARE)}; {hint}got {arguments.compare!r}")
    if arguments.sinks not in MODES:
        raise UserError(f"--sinks is {', '.join(MODES)}; {did_you_mean(arguments.sinks, MODES)}got {arguments.sinks!r}")
    arguments.sink_detector = SinkDetector.load(arguments.sink_file) if arguments.sink_file else None
    check_clips(arguments)
    read_dtype(arguments.dtype, read_device(arguments.device))
    if arguments.overlay:
        check_target(arguments.overlay, [*(arguments.image or ()), *(arguments.video or ())])
    if arguments.json and arguments.json != STDOUT:
        check_writable("--json", arguments.json)
    budget = {name: getattr(arguments, name) for name in ("keep_ratio", "n_keep", "keep_flops")}
    policy = make_policy(arguments.policy, arguments.option, seed=arguments.seed, **budget)
    if arguments.compare == "frames":
        check_one_clip(arguments, policy)
    return policy
