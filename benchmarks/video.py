"""What pruning a clip costs and saves, from the file to the answer: ``python -m benchmarks.video``.

Clips are encoded, read back as any video, and asked about with few frames and many, unpruned and pruned. The main
question: with as many visual tokens as 16 unpruned frames have, are 4, 10 or 16 times as many frames, pruned, worth
more? Times of the same prompts come from one run, in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks import video_model
from benchmarks.engine import Teller
from benchmarks.engine_time import clock_of
from benchmarks.measure import ROOT, conditions
from benchmarks.video_answers import FEW, SLICE_FRAMES, SLICE_TOKENS, Asker, Condition, at_one_budget, grid, once
from benchmarks.video_clips import CODECS, LENGTH, file_clip
from benchmarks.video_ledger import Ledger
from benchmarks.video_table import answers_table, budget_table, gathered, judged, times_table
from benchmarks.video_time import encode, seconds_of, time_rows, timed_models
from vtprune.embedded import load_video, video_path
from vtprune.embedded.scorer import clip_scorer

FIRST_SEED = 3000
"""Clips before it were looked at while the model was being trained, or are those of its card."""
POLICIES = ("random", "uniform", "evs", "framefusion", "quota")
PARTS = ("answers", "times")
EMBEDDED = "embedded"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--clips", type=int, default=60, help=f"of {LENGTH} frames, with up to 8 questions about each")
    add("--frames", nargs="+", type=int, default=[16, 64, 256], help="to be read")
    add("--keep", nargs="+", type=float, default=[0.25, 0.1], help="keep ratios; unpruned is always there")
    add("--policies", nargs="+", default=POLICIES, metavar="NAME[:OPTION=VALUE...]")
    add("--times", nargs="+", type=int, default=[1, 4, 10, 16], help=f"as many frames as {FEW}, at one budget")
    add("--budgets", nargs="*", type=int, default=[128, 32], help="visual tokens, for --times")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--rounds", type=int, default=5, help="timed runs of each configuration")
    add("--first", type=int, default=FIRST_SEED, help="number of the first clip")
    add("--scale", type=int, default=4, help="each pixel is so many pixels wide in the file")
    add("--fps", type=int, default=8, help="of the file")
    add("--codec", choices=CODECS, default=CODECS[0])
    add("--shape", choices=(EMBEDDED, *video_model.SHAPES), default=EMBEDDED, help="others have times only")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=1, help="on a CPU; with 1, CPU time is read instead of the wall clock")
    add("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for rows, tables and plot")
    args = parser.parse_args(argv)
    wrong = [n for n in (*args.frames, *(FEW * times for times in args.times)) if n % SLICE_FRAMES or n > LENGTH]
    if wrong or any(not 0 < ratio <= 1 for ratio in args.keep):
        parser.error(f"frames are even numbers up to {LENGTH}, keep ratios lie in (0, 1]; got {wrong or args.keep}")
    if args.shape != EMBEDDED:
        args.parts = ("times",)
    return args


def wanted(args: argparse.Namespace) -> list[Condition]:
    """All conditions of a run."""
    found = grid(args.frames, args.keep, args.policies)
    for budget in args.budgets:
        found += at_one_budget(budget, args.times, args.policies)
    return once([Condition(FEW), *found])


def answered(args: argparse.Namespace, model: nn.Module, processor, ledger: Ledger, tell: Teller) -> list[dict]:
    """What every clip gave; those that are in the ledger are not asked about again."""
    # it asks a copy, because it shall see all tokens
    scorer = clip_scorer(load_video(device=args.device)[0], processor)
    asker, asked, clips = Asker(model, processor, scorer), wanted(args), []
    try:
        for i in range(args.clips):
            seed = args.first + i
            if f"clip {seed}" not in ledger.found:
                with tempfile.TemporaryDirectory() as folder:
                    filed = file_clip(Path(folder), seed, scale=args.scale, fps=args.fps, codec=args.codec)
                    kinds = [question.kind for question in filed.questions]
                    ledger.add(f"clip {seed}", {"seed": seed, "kinds": kinds, "rows": list(asker.ask(filed, asked))})
                tell(f"clip {i + 1} of {args.clips}")
            clips.append(ledger.found[f"clip {seed}"])
    finally:
        asker.close()
    return clips


def timed(args: argparse.Namespace, model: nn.Module, processor, ledger: Ledger, tell: Teller) -> list[dict]:
    """Times of every condition, one number of frames after the other."""
    clock, rows = clock_of(args.device, args.threads)[1], []
    for frames, conditions_here in by_frames(wanted(args)):
        if f"times {frames}" not in ledger.found:
            with tempfile.TemporaryDirectory() as folder:
                inputs, whole = prepared(args, Path(folder), model, processor, frames, clock)
            models = timed_models(model, inputs, conditions_here)
            ledger.add(f"times {frames}", time_rows(models, args.rounds, clock, whole))
            tell(f"times of {frames} frames")
        rows += ledger.found[f"times {frames}"]
    return rows


def by_frames(found: Sequence[Condition]) -> Iterator[tuple[int, list[Condition]]]:
    for frames in sorted({condition.frames for condition in found}):
        yield frames, [condition for condition in found if condition.frames == frames]


def prepared(args, folder: Path, model: nn.Module, processor, frames: int, clock: dict) -> tuple[dict, dict]:
    """Inputs of one prompt with so many frames, and the seconds of all that comes before the decoder."""
    whole = {}
    if args.shape == EMBEDDED:
        filed = file_clip(folder, args.first, scale=args.scale, fps=args.fps, codec=args.codec)
        # decoders use threads of their own, so the wall clock counts
        whole |= seconds_of("read_seconds", lambda: filed.read(frames), args.rounds, {})
        clip, chat = filed.read(frames).pixels, [{"type": "video"}, {"type": "text", "text": filed.questions[0].text}]
        text = processor.apply_chat_template([{"role": "user", "content": chat}], add_generation_prompt=True)

        def prepare():
            return processor(text=[text], videos=[clip], padding=True, return_tensors="pt").to(model.device)

        whole |= seconds_of("prepare_seconds", prepare, args.rounds, clock)
        inputs = dict(prepare())
    else:
        inputs = video_model.prompt(model, frames, video_model.SHAPES[args.shape].side)
    return inputs, whole | seconds_of("vision_seconds", lambda: encode(model, inputs), args.rounds, clock)


def loaded(args: argparse.Namespace) -> tuple[nn.Module, object, dict]:
    """Model, processor (None where there is only a shape), and what a result must say of the model."""
    if args.shape == EMBEDDED:
        weights = hashlib.sha256((video_path() / "model.safetensors").read_bytes()).hexdigest()[:16]
        model, processor = load_video(device=args.device)
        return model, processor, {"model": "embedded video", "weights": weights, "dtype": "float32"}
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    model = video_model.build(video_model.SHAPES[args.shape], dtype, args.device)
    return model, None, {"model": f"random weights, {args.shape}", "dtype": str(dtype).removeprefix("torch.")}


def part_of(args: argparse.Namespace) -> list[str]:
    """For file names: which part it is, where the other one was left out."""
    return list(args.parts) if args.shape == EMBEDDED and len(set(args.parts)) < len(PARTS) else []


def device_name(device: str) -> str:
    """For file names."""
    return "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())


def text_of(args: argparse.Namespace, result: dict) -> str:
    """The tables of a result."""
    rows, times = result["rows"], result["times"]
    parts = []
    if rows:
        parts.append(
            f"Right answers to {result['questions']} questions about {result['clips']} clips of {LENGTH} frames, "
            f"embedded video model, in per cent\nwith intervals of 95 % by clip. `tokens`: visual tokens that a layer "
            f"processes, the mean over layers. Differences are\npaired, question by question; `random` and `uniform` "
            f"are controls.\n\n{answers_table(rows, args.frames, args.keep)}"
        )
        for budget in args.budgets:
            share = budget / (FEW // SLICE_FRAMES * SLICE_TOKENS)
            parts.append(
                f"One budget, {budget} visual tokens ({100 * share:g} % of those of {FEW} frames), spent on more and "
                f"more frames; and the\nsame frames with every token (`none`).\n\n{budget_table(rows, times, budget)}"
            )
    if times:
        parts.append(
            f"Seconds for one prompt, median (extremes) of {args.rounds} runs, {result['clock']}; reading by the wall "
            "clock. `prefill`: the decoder\nalone, selecting included; `first token`: `model.generate` from pixels, "
            f"vision included.\n\n{times_table(times)}"
        )
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    args, tell = parse(argv), Teller()
    torch.set_num_threads(args.threads)
    begin, (model, processor, about) = conditions(), loaded(args)
    about |= {name: getattr(args, name) for name in ("first", "scale", "fps", "codec", "shape", "rounds", "device")}
    about |= {"conditions": [[c.frames, c.keep_ratio, c.policy] for c in wanted(args)], "commit": begin["commit"]}
    base = args.out / "-".join(["video", args.shape, device_name(args.device), *part_of(args)])
    ledger = Ledger(base.with_suffix(".part.jsonl"), about)
    clips = answered(args, model, processor, ledger, tell) if "answers" in args.parts else []
    times = timed(args, model, processor, ledger, tell) if "times" in args.parts else []
    rows, owners, kinds = gathered(clips)
    result = {**begin, **about, "clips": len(clips), "questions": len(owners)}
    result |= {"clock": clock_of(args.device, args.threads)[0], "owners": owners, "kinds": kinds}
    result |= {"rows": judged(rows, owners, kinds), "times": times}
    base.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = text_of(args, result)
    base.with_suffix(".txt").write_text(text)
    sys.stdout.write(text)
    ledger.close()
    try:
        from benchmarks.video_plot import plot
    except ModuleNotFoundError as error:
        sys.stderr.write(f"no plot: {error}. pip install 'vtprune[bench]' brings it\n")
        return
    plot(result["rows"], times, max(args.budgets, default=0), min(args.keep), base.with_suffix(".png"))


if __name__ == "__main__":
    main()
