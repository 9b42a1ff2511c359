"""A made-up run whose truth is known: what each row would score in the long run, and what pruning costs.

Pictures have a difficulty, questions about one picture share it, and a condition answers a question rightly with a
known probability. Cache bytes and token counts follow from the ratio.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.bench.condition import Condition
from vtprune.bench.question import digest

TOKENS, TEXT, BYTES = 144, 20, 64
"""Visual tokens of a picture, other tokens of a prompt, bytes of a token in the cache."""
KINDS = ("count", "color", "text")
RATIOS = (0.5, 0.25, 0.1)


def conditions(policies: Sequence[str] = ("fastv", "divprune"), ratios: Sequence[float] = RATIOS) -> list[Condition]:
    """Every kind of row."""
    found = [Condition("full"), Condition("blind"), Condition("other")]
    for ratio in ratios:
        found += [Condition("policy", name, keep_ratio=ratio) for name in policies]
        found += [Condition("random", "random", keep_ratio=ratio, seed=seed) for seed in range(3)]
        found += [Condition("uniform", "uniform", keep_ratio=ratio), Condition("pool", "pool", keep_ratio=ratio)]
        found.append(Condition("downsampled", keep_ratio=ratio))
    return found


def chance(condition: Condition) -> float:
    """The probability of a right answer to a question of middling difficulty."""
    worth = {"full": 0.85, "blind": 0.35, "other": 0.33}
    if condition.kind in worth:
        return worth[condition.kind]
    # what is lost at a tenth of the tokens; a policy that is not named here is like random
    lost = {"fastv": 0.25, "divprune": 0.08, "pool": 0.2, "uniform": 0.3}.get(condition.policy, 0.32)
    return 0.85 - lost * (1 - condition.keep_ratio) / 0.9


def row(task: str, condition: Condition, number: int, picture: int, right: bool, raw: str) -> dict[str, Any]:
    """One line of rows.jsonl, of one sample alone."""
    seen = {"blind": 0.0, "full": 1.0, "other": 1.0}.get(condition.kind, condition.keep_ratio)
    after = round(TOKENS * seen)
    # a control that is no policy sees every token of what it is shown
    before = TOKENS if condition.prunes else after
    whole = (before + TEXT) * BYTES
    return {
        "task": task,
        "question": f"q{number}",
        "condition": condition.name,
        "row": condition.row,
        "cluster": f"p{picture}",
        "labels": {"kind": KINDS[number % 3]},
        "options": ["one", "two", "three", "four"],
        "answer": "A",
        "raw": raw,
        "parsed": None if raw.startswith("I ") else raw[:1],
        "score": float(right),
        "correct": right,
        "error": None,
        "prompt": f"{number:016x}",
        "visuals": [f"p{picture}.png"],
        "frames": None,
        "before": before,
        "after": after,
        "layers": float(after),
        "flops": 1000 * (20 + after),
        "kept": {"before the LLM": [before, after]} if condition.prunes else {},
        "kv": [(after + TEXT) * BYTES, (after + TEXT) * BYTES, whole] if before else None,
        "batch": 1,
        "first": digest(f"{number} {condition.name}"),
        "new_tokens": 1,
        "seconds": {"read": 0.001, "inputs": 0.002, "answer": 0.01 + 0.04 * seen, "select": 0.001},
        "notes": [],
        "seed": condition.seed,
        "commit": "0" * 40,
        "versions": {"vtprune": "0.1"},
        "date": "2026-11-01T00:00:00+00:00",
    }


def rows(
    asked: Sequence[Condition], pictures: int = 60, each: int = 3, task: str = "made-up", seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of all conditions; ``each`` questions about each picture."""
    random = np.random.default_rng(seed)
    hard = random.normal(scale=0.12, size=pictures)
    luck = random.random((pictures * each,))
    found = []
    for condition in asked:
        # mostly the same luck for all conditions: answers to one question agree more often than not
        own = np.where(random.random(pictures * each) < 0.7, luck, random.random(pictures * each))
        for number in range(pictures * each):
            picture = number // each
            right = bool(own[number] < chance(condition) - hard[picture] - 0.1 * (number % 3 == 2))
            raw = "A" if right else ("I cannot tell" if number % 40 == 7 else "B")
            found.append(row(task, condition, number, picture, right, raw))
    return found


def times(asked: Sequence[Condition], task: str = "made-up", batches: Sequence[int] = (1, 4)) -> list[dict[str, Any]]:
    """Lines of times.jsonl; the decoder's time goes with the tokens."""
    found = []
    for condition in asked:
        seen = {"blind": 0.0, "full": 1.0, "other": 1.0}.get(condition.kind, condition.keep_ratio)
        for batch in batches:
            parts = {"vision_ms": 12.0, "selector_ms": 0.8 if condition.prunes else 0.0, "prefill_ms": 8 + 30 * seen}
            parts = {name: batch * value for name, value in parts.items()}
            parts |= {"ttft_ms": sum(parts.values()), "token_ms": 4.0 + seen}
            parts["total_ms"] = parts["ttft_ms"] + 7 * parts["token_ms"]
            spread = {name: {"median": value, "p90": 1.1 * value, "n": 20} for name, value in parts.items()}
            tokens = batch * (round(TOKENS * seen) + TEXT)
            found.append(
                {"task": task, "condition": condition.name, "row": condition.row, "batch": batch, **spread}
                | {"tokens": [[TOKENS, round(TOKENS * seen)]] * batch, "peak_bytes": 3_000 * tokens}
                | {"kv_bytes": BYTES * tokens, "kv_bytes_unpruned": BYTES * batch * (TOKENS + TEXT)}
                | {"flops": {"vision": 1e9, "selector": 1e6, "decoder": 1e7 * tokens, "unpruned": 2e9}}
            )
    return found


def write(
    folder: Path,
    asked: Sequence[Condition],
    lines: Sequence[Mapping[str, Any]],
    revision: Callable[[str], str] = lambda task: "a" * 16,
    **more: Sequence[Mapping[str, Any]],
) -> Path:
    """A result folder. more: ``times`` and ``recheck`` lines."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"source": "made up", "metric": "accuracy", "visual": "image"}
    tasks = {
        task: {"name": task, "revision": revision(task), "questions": len({r["question"] for r in lines}), **about}
        for task in dict.fromkeys(line["task"] for line in lines)
    }
    model = {"name": "made-up-7b", "model_type": "llava", "parameters": 7_000_000_000, "dtype": "bfloat16"}
    run = {
        "format": 1,
        "model": {**model, "device": "cuda:0", "attention": "sdpa", "weights": "b" * 16},
        "tasks": tasks,
        "conditions": [condition.values() for condition in asked],
        "settings": {"frames": 32, "limit": None},
        "code": {"version": "0.1", "commit": "0" * 40, "digest": "c" * 16},
        "versions": {"torch": "2.13.0"},
        "command": "vtprune bench --model made-up-7b --task made-up --policy fastv",
        "started": "2026-11-01T00:00:00+00:00",
    }
    (folder / "run.json").write_text(json.dumps(run))
    for name, records in {"rows": lines, **more}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder
