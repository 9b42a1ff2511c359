"""Writes what the README says of policies, families and results: ``python -m benchmarks.readme``.

The README has names; the tables are in the folders of what they are about.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vtprune
from vtprune.cached import evicts
from vtprune.cli.docs import policy_card
from vtprune.families.base import FAMILIES, Family
from vtprune.policies.base import POLICIES
from vtprune.refused import REFUSALS
from vtprune.signals import parse
from vtprune.tokens import BEFORE_LLM, site_name

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = 120


def policy_names() -> str:
    """The registered policies by where they act."""
    groups: dict[str, list[str]] = {}
    for name, cls in sorted(POLICIES.items()):
        where = "in the cache, when the prompt has been read" if evicts(cls) else _where(cls().sites)
        groups.setdefault(where, []).append(f"`{name}`")
    return "\n".join(_wrapped(f"* {where}: {', '.join(names)}", "  ") for where, names in groups.items())


def _where(sites: Sequence[float]) -> str:
    before = BEFORE_LLM in sites
    if len(sites) > before:
        return "before and inside the LLM" if before else "inside the LLM"
    return "before the LLM"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def family_names() -> str:
    """What people call the models that are known, in the order of the alphabet."""
    names = sorted({name for module in _modules() for name in _called(module)}, key=str.casefold)
    return _wrapped(f"{len(FAMILIES)} model types: {', '.join(names)}.")


def _modules() -> dict[str, list[str]]:
    """The files of families, each with its model types."""
    found: dict[str, list[str]] = {}
    for model_type, family in FAMILIES.items():
        found.setdefault(type(family).__module__, []).append(model_type)
    return dict(sorted(found.items()))


def _about(module: str) -> tuple[str, str]:
    """What the first line of a family's file says: names of models, and what is special about them."""
    names, _, special = (sys.modules[module].__doc__ or "").strip().splitlines()[0].rstrip(".").partition(": ")
    return names, special


def _called(module: str) -> list[str]:
    """The names alone, one by one."""
    return re.split(r", | and ", re.sub(r", (also|dense)\b.*", "", _about(module)[0]))


def results() -> str:
    """The scores of controls, and of the policies that were best or tied at some ratio, on both embedded models.

    Accuracies in per cent. Bold: best of its column or tied with it; + and -: told from as many random tokens.
    """
    kept = {model: what for model, what in MODELS.items() if _path(model).exists()}
    tasks = [_task(model) for model in kept]
    shown = {_plain(name) for task in tasks for name in _best(task)}
    columns, cells = [], {}
    for task, what in zip(tasks, kept.values(), strict=True):
        best = _best(task)
        ratios = sorted(map(float, task["ratios"]), reverse=True)
        for name, row in task["rows"].items():
            if row["keep_ratio"] < 1 and (row["kind"] != "policy" or _plain(name) in shown):
                column = (what, row["keep_ratio"])
                cells.setdefault(_plain(name), {})[column] = _score(row, name in best)
        columns += [(what, ratio) for ratio in ratios]
    head = [f"{what}, {100 * ratio:g} %" for what, ratio in columns]
    lines = [f"| kept | {' | '.join(head)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(of.get(column, '') for column in columns)} |" for name, of in cells.items()]
    said = "; ".join(_unpruned(task, what) for task, what in zip(tasks, kept.values(), strict=True))
    return "\n".join([*lines, "", _wrapped(f"{said}.")])


def _best(task: Mapping[str, Any]) -> set[str]:
    """The best row of each ratio, and those that cannot be told from it."""
    return {name for found in task["ratios"].values() for name in (found["best"], *found["tied"])}


def _task(model: str) -> Mapping[str, Any]:
    return json.loads(_path(model).read_text())["tasks"][model]


def _path(model: str) -> Path:
    return ROOT / "benchmarks/results" / model / "summary.json"


def _unpruned(task: Mapping[str, Any], what: str) -> str:
    full, blind = (100 * task["rows"][name]["score"] for name in ("full", "blind"))
    n, clusters = task["questions"], task["clusters"]
    return f"{what}: {n:,} questions about {clusters}, unpruned {full:.1f} %, blind {blind:.1f} %"


def _plain(name: str) -> str:
    return (
        f"`{name.partition('@')[0]}`"
        if name.partition("@")[0].partition(":")[0] in POLICIES
        else name.partition("@")[0]
    )


def _score(row: Mapping[str, Any], best: bool) -> str:
    if row.get("score") is None:
        return "refused"
    beside = (row.get("to_random") or {}).get("verdict")
    sign = {"better": " +", "worse": " -"}.get(beside, "") if row["kind"] == "policy" else ""
    words = f"{100 * row['score']:.1f}{sign}"
    return f"**{words}**" if best else words


MODELS = {"embedded-image": "pictures", "embedded-video": "clips of 16 frames"}


def policies() -> str:
    """One row for each registered policy, as it is without options."""
    rows = ["| policy | what it does | acts | looks at | source |", "|---|---|---|---|---|"]
    for name, cls in sorted(POLICIES.items()):
        card, policy = policy_card(name, cls), cls()
        acts = ", ".join([*places(policy.sites), *(["in the cache"] if evicts(cls) else [])])
        needs = ", ".join(sorted({parse(need).name.replace("_", " ") for need in policy.needs})) or "-"
        cells = (f"`{name}`", card.title.rstrip("."), acts, needs, card.source.rstrip(".") or "control")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def places(sites: Sequence[float]) -> list[str]:
    """Sites in words; of more than three of a kind the first and the last."""
    found = [site_name(site) for site in sites if site == BEFORE_LLM]
    for kind, some in (
        ("layer", [site for site in sites if site >= 0 and site == int(site)]),
        ("inside layer", [site for site in sites if site != int(site)]),
    ):
        if len(some) > 3:
            found.append(f"{kind}s {int(some[0])} to {int(some[-1])}")
        else:
            found += [site_name(site) for site in some]
    return found


def families() -> str:
    """One row for each family file: what people call its models, their types, and on which releases they passed."""
    rows = ["| models | model types | prompts | decoder | tested on | what is special |", "|---|---|---|---|---|---|"]
    for module, types in _modules().items():
        names, special = _about(module)
        shown = [", ".join(f"`{t}`" for t in sorted(types)), _prompts(types), _declared(types), _tested(types)]
        rows.append(f"| {names} | {' | '.join(shown)} | {special} |")
    return "\n".join(rows)


DECLARED = ("between_layers", "cuts_rows", "tokenwise", "active_plane", "text_is_base")
"""Fields of a family that say what its decoder does beside handing hidden states from layer to layer."""


def _declared(types: Sequence[str]) -> str:
    """What the engine was told of the decoders."""
    found = {name for t in types for name in DECLARED if getattr(FAMILIES[t], name) != getattr(Family, name)}
    return ", ".join(f"`{name}`" for name in sorted(found)) or "as it is"


def _prompts(types: Sequence[str]) -> str:
    """Kinds of prompts that were tested."""
    kinds = {kind for found in _releases().values() for name in _tiny(types) for kind in found.get(name, {})}
    return " and ".join(shown for kind, shown in (("image", "images"), ("video", "clips")) if kind in kinds)


def _tested(types: Sequence[str]) -> str:
    """The releases of transformers on which tests of these families passed, and which prompts of which failed there."""
    shown = []
    for release, found in _releases().items():
        verdicts = {(name, kind): one for name in _tiny(types) for kind, one in found.get(name, {}).items()}
        bad = [case for case, verdict in verdicts.items() if verdict == "failed"]
        failed = [f"`{name}`{' clips' if kind == 'video' else ''}" for name, kind in bad]
        if "passed" in verdicts.values():
            shown.append(release + (f" (not {', '.join(failed)})" if failed else ""))
    return ", ".join(shown)


def _releases() -> Mapping[str, Any]:
    return json.loads((ROOT / "vtprune/families/tested.json").read_text(encoding="utf-8"))


def _tiny(types: Sequence[str]) -> list[str]:
    """Names of tiny models, which say more than the type (gemma4_moe, mistral3_m4) or less (qwen2_5_omni)."""
    names = {name for found in _releases().values() for name in found}
    of = {name: max((t for t in FAMILIES if name.startswith(t)), key=len, default=None) for name in names}
    of |= {name: next((t for t in FAMILIES if t.startswith(name)), name) for name in names if of[name] is None}
    return sorted(name for name in names if of[name] in types)


def refused() -> str:
    """One row for each reason, with the model types that are refused for it."""
    rows = ["| refused | why |", "|---|---|"]
    rows += [f"| {', '.join(f'`{name}`' for name in one.models)} | {one.why} |" for one in REFUSALS]
    return "\n".join(rows)


def filled(text: str) -> str:
    """The README with fresh parts between its markers."""
    for name, part in (("policies", policy_names()), ("families", family_names()), ("results", results())):
        block = f"<!-- {name} -->\n{part}\n<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if not found:
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} --> to fill; put both markers back")
    return text


def tables() -> dict[Path, str]:
    """The files beside the code that hold a whole table."""
    return {
        ROOT / "vtprune/policies/README.md": f"# Policies\n\n{POLICIES_HEAD}\n\n{policies()}\n",
        ROOT / "vtprune/families/README.md": f"# Families\n\n{FAMILIES_HEAD}\n\n{families()}\n\n{refused()}\n",
    }


POLICIES_HEAD = """\
What can be named in `vtprune.wrap(model, NAME, ...)`; `vtprune policies NAME` tells the options. Written by
`python -m benchmarks.readme` from the registry: sites and signals are those without options, on a model of unknown
depth. What differs from released code is said at the top of each file.

A policy of your own needs no base class; `ScorePolicy` and, for the cache, `CachePolicy` save work:

```python
import torch
from vtprune import BEFORE_LLM, Selection, wrap


class EverySecond:
    needs, sites = frozenset(), (BEFORE_LLM,)

    def select(self, tokens):
        return Selection(torch.arange(0, len(tokens), 2, device=tokens.hidden.device))


wrap(model, EverySecond())
```

To share it, put it into one file in this folder (see `fastv.py`); the contract tests find it by themselves."""

FAMILIES_HEAD = """\
The model types that are known, and what is special about their prompts; then those that are known and refused.
"Tested on" are releases of transformers on which the tests of `make test-matrix ARGS='-m "not slow"'` passed, with what
failed there; what the models of a release cannot do themselves is left out, see `tests/release.py`. Written by
`python -m benchmarks.readme` from the registry, `tested.json` and `vtprune/refused.py`."""


if __name__ == "__main__":
    for path, text in tables().items():
        path.write_text(text)
    README.write_text(filled(README.read_text()))
    print(f"tables of vtprune {vtprune.__version__} written")
