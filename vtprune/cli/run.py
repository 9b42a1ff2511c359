"""``vtprune run``: a question about pictures, answered with pruned visual tokens, and what that saved."""

from __future__ import annotations

import argparse
import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vtprune.cli.error import UserError

HELP = "answer a question about pictures with pruned visual tokens; without arguments, an example"

_HELLO = """\
A small model that ships with vtprune answers a question about a bundled picture, once with all of its visual tokens and
once with those that a policy keeps. It is a toy: its times say little about those of large models. Yours is next:
  vtprune run --model FOLDER --image picture.jpg --prompt "What is this?" --compare --overlay kept.png
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add = parser.add_argument
    add("--image", nargs="+", action="extend", metavar="FILE", help="one picture or several (default: a bundled one)")
    add("--prompt", help="the question; <image> says where a picture goes (default: pictures first)")
    add("--model", default="embedded", metavar="FOLDER", help="a model folder, or 'embedded' (the default)")
    add("--policy", metavar="NAME", help="see vtprune policies (default: fastv)")
    add("--keep-ratio", metavar="R", help="the fraction of visual tokens kept, in (0, 1]")
    add("--n-keep", metavar="N", help="the number of visual tokens kept, instead")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="another option of the policy; repeatable")
    add("--positions", metavar="HOW", help="original or compact, instead of what the policy's method does")
    add("--compare", action=argparse.BooleanOptionalAction, help="also without pruning (the default without --image)")
    add("--overlay", metavar="FILE", help="draw which parts of the pictures live on; replaces FILE")
    add("--json", nargs="?", const="-", metavar="FILE", help="everything as JSON, to FILE or instead of the tables")
    add("--runs", type=int, metavar="N", help="timed runs of each; 0: none (default: 3 to 9, about 3 seconds)")
    add("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default: 32)")
    add("--seed", type=int, default=0, metavar="N", help="for policies that draw at random (default: 0)")
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
    from vtprune.cli.console import STDOUT, say, write_json
    from vtprune.cli.result import print_result

    with notes_instead_of_warnings():
        images, prompt, right = pictures_and_prompt(arguments)
        result, draw = answer(arguments, policy, images, prompt, right)
    if arguments.json:
        write_json(result, arguments.json)
    if arguments.json != STDOUT:
        if result["right_answer"] is not None:
            say(_HELLO)
        print_result(result)
    if draw is not None:
        draw()
        if arguments.json != STDOUT:
            say(f"Drawn: {arguments.overlay}")
    return 0


def fill_in(arguments: argparse.Namespace) -> None:
    """The policy if none is named; for the bundled example one that suits its model of six layers."""
    said = (arguments.image, arguments.policy, arguments.option, arguments.keep_ratio, arguments.n_keep)
    if arguments.model == "embedded" and not any(said):
        # its question reaches the picture in layer 2, so the attention that FastV reads means something from there on
        arguments.option, arguments.keep_ratio = ["layer=3"], "0.25"
    arguments.policy = arguments.policy or "fastv"


def check(arguments: argparse.Namespace) -> Any:
    """The policy of the command line. Raises for what can be told to be wrong before anything is loaded."""
    from vtprune.cli.console import STDOUT, check_writable
    from vtprune.cli.options import make_policy
    from vtprune.cli.overlay import check_target
    from vtprune.models import read_device, read_dtype

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is 1 or more; got {arguments.max_new_tokens}")
    if arguments.runs is not None and arguments.runs < 0:
        raise UserError(f"--runs is 0 (no times) or more; got {arguments.runs}")
    if arguments.positions not in (None, "original", "compact"):
        raise UserError(f"--positions is original or compact; got {arguments.positions!r}")
    read_dtype(arguments.dtype, read_device(arguments.device))
    if arguments.overlay:
        check_target(arguments.overlay, arguments.image or ())
    if arguments.json and arguments.json != STDOUT:
        check_writable("--json", arguments.json)
    budget = {"keep_ratio": arguments.keep_ratio, "n_keep": arguments.n_keep}
    return make_policy(arguments.policy, arguments.option, seed=arguments.seed, **budget)


def pictures_and_prompt(arguments: argparse.Namespace) -> tuple[list, str, str | None]:
    """The pictures, the question, and the right answer where it is known."""
    from vtprune.cli.prompt import PLACE, split_prompt
    from vtprune.embedded import example
    from vtprune.images import read_image
    from vtprune.models import EMBEDDED

    if arguments.image:
        general = "How many objects are there?" if arguments.model == EMBEDDED else "Describe the image."
        prompt = general if arguments.prompt is None else arguments.prompt
        split_prompt(_asked(prompt), PLACE, len(arguments.image))
        return [read_image(path) for path in arguments.image], prompt, None
    picture, question, right = example()
    if arguments.prompt is None:
        return [picture], question, right
    split_prompt(_asked(arguments.prompt), PLACE, 1)
    return [picture], arguments.prompt, None


def _asked(prompt: str) -> str:
    if not prompt.strip():
        raise UserError(f"--prompt is a question in words; got {prompt!r}")
    return prompt


def answer(arguments: argparse.Namespace, policy: Any, images: list, prompt: str, right: str | None):
    """The result as plain values, and a function that draws the overlay (None if none is wanted)."""
    import torch

    from vtprune.cli.console import note, status, still
    from vtprune.cli.measure import Times, look, time_variants
    from vtprune.cli.prompt import make_inputs, unknown_words
    from vtprune.models import load

    with quiet_transformers(), status(f"loading {arguments.model}"):
        kinds = {"dtype": arguments.dtype, "device": arguments.device, "attention": arguments.attn}
        loaded = load(arguments.model, **kinds)
    unknown = unknown_words(loaded, prompt)
    if unknown:
        note(f"the model does not know these words: {', '.join(unknown)}")
    raw = make_inputs(loaded, images, prompt)
    inputs = raw.copy().to(loaded.model.device, loaded.model.dtype)
    variants = _variants(loaded.model, policy, arguments)
    torch.manual_seed(arguments.seed)
    looks, report = {}, None
    with quiet_transformers(), out_of_memory(loaded.model.device):
        for name, variant in variants.items():
            with status(f"generating, {name}"), variant() as found:
                looks[name] = look(loaded, inputs, arguments.max_new_tokens)
                report = found or report
        times = {name: Times() for name in variants}
        if arguments.runs != 0:
            with still("measuring"):
                times = time_variants(loaded, inputs, variants, arguments.max_new_tokens, arguments.runs)
    if report.last is None:
        raise UserError(
            f"the processor of {arguments.model} put no visual tokens into the prompt; there is nothing to prune"
        )
    result = _result(arguments, loaded, images, prompt, right, looks, times, report)
    return result, functools.partial(_draw, arguments, report, images, raw, loaded) if arguments.overlay else None


def _variants(model, policy: Any, arguments: argparse.Namespace) -> dict:
    from vtprune.api import pruned

    compare = not arguments.image if arguments.compare is None else arguments.compare
    variants = {"unpruned": nullcontext} if compare else {}
    # entered for a moment, so that what cannot be wrapped is known before minutes of work
    with pruned(model, policy, positions=arguments.positions):
        pass
    return {**variants, "pruned": functools.partial(pruned, model, policy, positions=arguments.positions)}


def _result(arguments, loaded, images, prompt, right, looks, times, report) -> dict[str, Any]:
    from vtprune import __version__
    from vtprune.cli.measure import timed_tokens
    from vtprune.cli.result import compared, plain_numbers, policy_values, pruned_numbers

    model, plain = loaded.model, looks.get("unpruned")
    paths = arguments.image or ["bundled"]
    pair = (looks["pruned"], plain, times["pruned"], times["unpruned"]) if plain else None
    return {
        "vtprune": __version__,
        "model": {
            "name": loaded.name,
            "model_type": loaded.model_type,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "policy": policy_values(arguments.policy, report.policy),
        "positions": report.positions,
        "images": [{"path": path, "size": list(image.size)} for path, image in zip(paths, images, strict=True)],
        "prompt": prompt,
        "right_answer": right if loaded.embedded else None,
        "unpruned": plain_numbers(plain, times["unpruned"]) if plain else None,
        "pruned": pruned_numbers(looks["pruned"], times["pruned"], report),
        "comparison": compared(*pair) if pair else None,
        "runs": len(times["pruned"].prefill),
        "timed_tokens": timed_tokens(arguments.max_new_tokens),
        "overlay": arguments.overlay,
    }


def _draw(arguments: argparse.Namespace, report, images: list, inputs, loaded) -> None:
    from vtprune.cli.overlay import draw_report, save

    save(draw_report(report, images, inputs, loaded.processor, arguments.policy), arguments.overlay)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice of transformers meanwhile; errors are ours to tell."""
    from transformers.utils import logging as advice

    level, bars = advice.get_verbosity(), advice.is_progress_bar_enabled()
    advice.set_verbosity_error()
    advice.disable_progress_bar()
    try:
        yield
    finally:
        advice.set_verbosity(level)
        if bars:
            advice.enable_progress_bar()


@contextmanager
def notes_instead_of_warnings() -> Iterator[None]:
    """Warnings of vtprune become notes of one line on the error stream; those of other packages are left out."""
    from vtprune.cli.console import note

    # Pillow tells its logger about damage that it then raises
    pillow = logging.getLogger("PIL")
    level = pillow.level
    pillow.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        pillow.setLevel(level)
    own = Path(__file__).parent
    for warning in caught:
        if own in Path(warning.filename).parents:
            note(str(warning.message))


@contextmanager
def out_of_memory(device) -> Iterator[None]:
    """Tells in one line that the device's memory was not enough."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{device} has not enough memory for this model and prompt; use --dtype bfloat16, a smaller picture, or "
            "--device cpu"
        ) from error
