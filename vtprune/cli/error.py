"""What the command line says when something is wrong: one line, with the value, what is allowed and the next step."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """A command line that cannot be obeyed."""


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print the usage and exit; options cannot be abbreviated."""

    def __init__(self, **more):
        more.setdefault("allow_abbrev", False)
        super().__init__(**more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'run'? " or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]!r}? " if close else ""


def one_line(error: BaseException) -> str:
    """The text of an error in one line that a terminal can show."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)
