"""``vtprune policies``: the registered policies, what they do, where they come from, their options."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from vtprune.cli.error import UserError, did_you_mean

HELP = "list the policies and their options"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="show these in full, with the help of each option")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, or the named policies in full."""
    from vtprune.cli.console import STDOUT, write_json
    from vtprune.cli.docs import policy_card
    from vtprune.policies.base import POLICIES

    for name in arguments.names:
        if name not in POLICIES:
            hint = did_you_mean(name, POLICIES)
            raise UserError(f"unknown policy {name!r}; {hint}known: {', '.join(sorted(POLICIES))}")
    cards = [policy_card(name, POLICIES[name]) for name in arguments.names or sorted(POLICIES)]
    if arguments.json:
        write_json([card_json(card) for card in cards], STDOUT)
    elif arguments.names:
        for card in cards:
            _print_card(card)
    else:
        _print_table(cards)
    return 0


def card_json(card) -> dict[str, Any]:
    """A card as plain values; sets and other defaults that JSON does not have as text."""
    options = [{**dataclasses.asdict(option), "default": plain_value(option.default)} for option in card.options]
    return {**dataclasses.asdict(card), "options": options}


def plain_value(value: Any) -> Any:
    """A value that JSON has: sequences and tensors become lists, and what it does not have its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [plain_value(one) for one in value] if isinstance(value, (tuple, list)) else str(value)


def _print_table(cards) -> None:
    from vtprune.cli.console import say, table

    rows = []
    for card in cards:
        options = ", ".join(f"{option.name}={shown(option.default)}" for option in card.options)
        rows.append((card.name, card.title, options or "-", card.source or "-"))
    table(("policy", "what it does", "options", "source"), rows)
    say("\nvtprune policies NAME says what the options mean.")


def _print_card(card) -> None:
    from vtprune.cli.console import say, table

    say(card.name, style="bold")
    counts = f"keep_ratio counts: {card.counts}." if card.counts else ""
    for text in (card.title, card.summary, card.source, card.differs, counts):
        if text:
            say(text)
    rows = [(o.name, o.type, shown(o.default), o.help) for o in card.options]
    if rows:
        table(("option", "type", "default", "meaning"), rows)
    say("")


def shown(value: Any) -> str:
    """A default as it is typed on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
