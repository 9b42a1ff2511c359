"""``vtprune bench``: what pruning costs in right answers and saves in time, beside controls, on any model and task."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from vtprune.cli.bench_arguments import EMBEDDED_IMAGE, add_arguments, check, fill_in, read_command, read_frames_option

HELP = "compare policies with controls on a task's questions; without arguments, an example"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command and of its own commands."""
    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks, stores, prints; or what the command's own commands do."""
    from vtprune.cli.bench_result import list_tasks, show_comparison, show_report

    command, folders = read_command(arguments.command)
    if command == "report":
        show_report(*folders, arguments.json, plots=arguments.plots)
    elif command == "compare":
        show_comparison(*folders, arguments.row, force=arguments.force)
    elif arguments.list_tasks:
        list_tasks(arguments.json)
    else:
        fill_in(arguments)
        _bench(arguments)
        show_report(Path(arguments.out), arguments.json)
    return 0


def _bench(arguments: argparse.Namespace) -> None:
    from vtprune.bench.choose_conditions import choose_conditions, read_controls, read_ratios
    from vtprune.bench.choose_tasks import name_tasks, read_tasks
    from vtprune.bench.identity import Identity, code_digest, describe_model
    from vtprune.bench.plan import Plan
    from vtprune.bench.store import Store
    from vtprune.bench.versions import commit, versions
    from vtprune.cli.console import note
    from vtprune.model_folder import EMBEDDED_MODELS

    options = check(arguments)
    frames = read_frames_option(arguments.frames)
    data = Path(arguments.data) if arguments.data else None
    tasks, folders = name_tasks(arguments.task, data)
    clips = any(task.visual != "image" for task in tasks.values())
    policies = arguments.policy or [_usual_policy(arguments.model, clips)]
    ratios, controls = read_ratios(arguments.keep_ratio), read_controls(arguments.controls)
    by_flops = arguments.budget == "flops"
    conditions, refused = choose_conditions(
        policies, ratios, controls, clips=clips, seed=arguments.seed, by_flops=by_flops
    )
    places = {"dtype": arguments.dtype, "device": arguments.device, "attention": arguments.attn}
    model = describe_model(arguments.model, **places)
    about, asked = read_tasks(tasks, arguments.limit, arguments.seed)
    # workers may be started elsewhere
    folders = {name: str(Path(folder).absolute()) for name, folder in folders.items()}
    plan = Plan(
        arguments.model if arguments.model in EMBEDDED_MODELS else str(Path(arguments.model).absolute()),
        tuple(tasks),
        tuple(conditions),
        data=str(data.absolute()) if data else None,
        folders=folders,
        scorer=arguments.scorer,
        frames=frames,
        max_new_tokens=arguments.max_new_tokens,
        **places,
    )
    names = ("max_new_tokens", "seed", "limit", "batch", "engine", "workers", "gpus_per_worker", "scorer")
    settings = {"frames": frames, **{name: getattr(arguments, name) for name in names}}
    code = {"version": versions()["vtprune"], "commit": commit(), "digest": code_digest()}
    command = shlex.join(["vtprune", *sys.argv[1:]])
    identity = Identity(model, about, conditions, settings, code, versions(), command)
    with Store.open(arguments.out, identity, fresh=arguments.fresh) as store:
        for text in (*refused, *store.notes):
            note(text)
        _answer(arguments, plan, store, asked, options)


def _usual_policy(model: str, clips: bool) -> str:
    if clips:
        # what repeats from frame to frame is merged, which FastV knows nothing of
        return "framefusion"
    # the question of the embedded model reaches the picture in layer 2, so attention means something from there
    return "fastv:layer=3" if model == EMBEDDED_IMAGE else "fastv"


def _answer(arguments: argparse.Namespace, plan: Any, store: Any, asked: Any, options: dict[str, Any]) -> None:
    from vtprune.bench.conduct import conduct
    from vtprune.bench.run import summary_line
    from vtprune.cli.console import note
    from vtprune.cli.quiet import notes_instead_of_warnings

    more = {"batch": arguments.batch, "engine": arguments.engine, "options": options}
    with notes_instead_of_warnings():
        ran = conduct(plan, store, asked, retry_failed=arguments.retry_failed, times=arguments.times, **more)
    note(summary_line(ran, store.folder))
    if ran.why:
        note(f"the first that failed: {ran.why}; --retry-failed asks again")
