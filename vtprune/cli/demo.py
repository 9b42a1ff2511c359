"""``vtprune demo``: a page in the browser on which one sees what was kept, and what it costs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from vtprune.cli.error import UserError

HELP = "open a page on which one sees what was kept, and what it costs"

PORT = 7860


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="a model folder for pictures and clips (default: the two that ship)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: float32 on a CPU)")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where it listens (default: 127.0.0.1, this machine alone; 0.0.0.0 lets everybody in who can reach it)",
    )
    add("--port", type=int, metavar="N", help=f"(default: {PORT}, or the next one that is free)")


def run(arguments: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port is a number from 1 to 65535; got {arguments.port}")
    from vtprune.models import read_device, read_dtype

    read_dtype(arguments.dtype, read_device(arguments.device))
    if find_spec("gradio") is None:
        raise ImportError("vtprune demo needs gradio; install it with: pip install 'vtprune[demo]'")
    from vtprune.cli.console import say, status
    from vtprune.demo.engine import Engine
    from vtprune.demo.page.app import build, launch

    engine = Engine(arguments.model, device=arguments.device, dtype=arguments.dtype)
    # a folder that cannot be loaded is told before a page stands open
    with status("loading the model"), engine.use("image"):
        page = build(engine)
    try:
        address = launch(page, arguments.host, arguments.port)
    except OSError as error:
        port = "any port" if arguments.port is None else f"port {arguments.port}"
        raise UserError(
            f"cannot listen at {arguments.host}, {port}: it is in use, or no address of this machine; choose another "
            "with --host and --port"
        ) from error
    say(f"The demo is at {address} (Ctrl+C ends it)")
    page.block_thread()
    return 0
