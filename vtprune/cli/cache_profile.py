"""``vtprune cache-profile``: what fraction of its visual tokens each layer's cache drops, mean over some prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtprune.cli.error import UserError

if TYPE_CHECKING:
    from vtprune.cache_profile import CacheProfile
    from vtprune.models import Loaded
    from vtprune.records import CacheRecord

HELP = "measure which layers need how much cache, over some pictures or clips, for prefixkv's option profile"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, or one that ships: embedded-image, embedded-video")
    add("files", nargs="+", metavar="FILE", help="a picture or a clip; each is a prompt, with the same question")
    add("--out", required=True, metavar="FILE", help="where the profile is written, as JSON; replaces FILE")
    add("--policy", default="prefixkv", metavar="NAME", help="a policy of the cache (default: prefixkv)")
    add("--keep-ratio", default="0.2", metavar="R", help="the fraction of visual tokens kept, in (0, 1] (default: 0.2)")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="another option of the policy; repeatable")
    add("--prompt", help="the question (default: to describe what is seen)")
    add("--frames", type=int, metavar="N", help="frames of each clip, spread evenly (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: float32 on a CPU)")
    add("--attn", metavar="NAME", help="sdpa, eager, flash_attention_2 or flex_attention (default: sdpa)")


def run(arguments: argparse.Namespace) -> int:
    """Reads every prompt once, writes the file, prints the layers."""
    policy = check(arguments)
    # transformers is loaded from here on
    from vtprune.cli.console import say, status, table
    from vtprune.cli.quiet import notes_instead_of_warnings, out_of_memory, quiet_transformers
    from vtprune.models import load

    with notes_instead_of_warnings(), quiet_transformers():
        with status(f"loading {arguments.model}"):
            kinds = {"dtype": arguments.dtype, "device": arguments.device, "attention": arguments.attn}
            loaded = load(arguments.model, **kinds)
        with out_of_memory(loaded.model.device):
            profile = measure(arguments, loaded, policy)
    try:
        profile.save(arguments.out)
    except OSError as error:
        raise UserError(f"--out cannot write {arguments.out}: {error.strerror or error}; choose another") from error
    rows = [(str(layer), f"{dropped:.3f}") for layer, dropped in sorted(profile.dropped.items())]
    table(("layer", "dropped"), rows, right=("layer", "dropped"))
    say(f"\nWritten: {arguments.out}, the mean of {profile.prompts} prompts.")
    say(f"Use it with: --policy prefixkv --option profile={arguments.out}")
    return 0


def check(arguments: argparse.Namespace) -> Any:
    """The policy. Raises for what can be told to be wrong before anything is loaded."""
    from vtprune.cached import evicts
    from vtprune.cli.clips import check_clips
    from vtprune.cli.console import check_writable
    from vtprune.cli.options import make_policy
    from vtprune.models import read_device, read_dtype

    policy = make_policy(arguments.policy, arguments.option, keep_ratio=arguments.keep_ratio)
    if not evicts(policy):
        raise UserError(f"a profile is of a policy of the cache, such as prefixkv; {arguments.policy} evicts nothing")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UserError(f"--prompt is a question in words; got {arguments.prompt!r}")
    for path in arguments.files:
        if not Path(path).exists():
            raise UserError(f"there is no file {path}; give pictures and clips")
    if arguments.frames is not None:
        check_clips(argparse.Namespace(frames=arguments.frames, fps=None, partial=False, video=arguments.files))
    read_dtype(arguments.dtype, read_device(arguments.device))
    check_writable("--out", arguments.out)
    return policy


def measure(arguments: argparse.Namespace, loaded: Loaded, policy: Any) -> CacheProfile:
    """The mean over all files, each a prompt of its own."""
    from vtprune.cache_profile import CacheProfile
    from vtprune.cli.console import status
    from vtprune.families.base import family_of
    from vtprune.plan import facts_of

    records = []
    for number, path in enumerate(arguments.files, 1):
        with status(f"reading {number} of {len(arguments.files)}: {path}"):
            records.append(_record(arguments, loaded, policy, path))
    facts = facts_of(loaded.model, family_of(loaded.model))
    return CacheProfile.measured(records, facts, arguments.policy, float(arguments.keep_ratio))


def _record(arguments: argparse.Namespace, loaded: Loaded, policy: Any, path: str) -> CacheRecord:
    """What a prefill of one prompt left in the cache."""
    from vtprune.cli.answer import pruned_trial
    from vtprune.cli.inputs import read_asked
    from vtprune.cli.prompt import make_inputs, split_prompt

    clip = is_clip(path)
    asked = read_asked(
        argparse.Namespace(
            model=arguments.model,
            prompt=arguments.prompt,
            image=None if clip else [path],
            video=[path] if clip else None,
            frames=arguments.frames,
            fps=None,
            partial=False,
        )
    )
    parts = split_prompt(asked.prompt, asked.pictures, [one.frames for one in asked.clips], loaded.processor)
    trial = pruned_trial(loaded, make_inputs(loaded, parts), parts, policy, None)
    with trial.enter() as report:
        loaded.model.generate(**trial.inputs, max_new_tokens=1, do_sample=False, num_beams=1, use_cache=True)
    if report.last is None or report.last.cached is None:
        raise UserError(f"the processor of {arguments.model} put no visual tokens into the prompt about {path}")
    return report.last.cached


def is_clip(path: str) -> bool:
    """Whether a file is a clip and no picture: by its name, and folders and GIFs are clips."""
    from vtprune.video.folder import SUFFIXES

    suffix = Path(path).suffix.lower()
    return Path(path).is_dir() or suffix not in SUFFIXES or suffix == ".gif"
