"""The command line: ``vtprune run``, ``demo``, ``bench``, ``cache-profile``, ``policies``, ``families``, ``sinks``.

A command is a module with ``HELP`` (one line), ``arguments(parser)`` and ``run(arguments) -> int`` (the exit code),
named in ``COMMANDS``; it may import whatever is heavy inside ``run`` only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vtprune.cli.error import Parser, UserError, did_you_mean, one_line

COMMANDS = {
    "run": "vtprune.cli.run",
    "demo": "vtprune.cli.demo",
    "bench": "vtprune.cli.bench",
    "cache-profile": "vtprune.cli.cache_profile",
    "policies": "vtprune.cli.policies",
    "families": "vtprune.cli.families",
    "sinks": "vtprune.cli.sinks",
}
"""The commands by name, in the order of the help."""

_DESCRIPTION = "Prunes the visual tokens of vision-language models. Try: vtprune run"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line. Exit codes: 0 done, 2 a mistake in it (one line on stderr says which), 130 interrupted.

    ``--traceback`` shows where an error came from.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a letter that the terminal does not know is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        return _obey(argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read the output has left; what is still buffered must not fail again at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
        if "--traceback" in argv:
            raise
        sys.stderr.write(f"vtprune: {one_line(error)}\n")
        return 2


def _obey(argv: list[str]) -> int:
    parser = build_parser()
    if not argv:
        parser.print_help()
        return 2
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        raise UserError(f"unknown command {argv[0]!r}; {hint}commands: {', '.join(COMMANDS)}")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return arguments.obey(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser with a sub-parser for each command."""
    from vtprune import __version__

    parser = Parser(prog="vtprune", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"vtprune {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = import_module(module)
        own = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.arguments(own)
        own.add_argument("--traceback", action="store_true", help="on an error, show where it came from")
        own.set_defaults(obey=command.run)
    return parser
