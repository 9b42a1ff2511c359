"""The result of ``vtprune run``: as plain values for JSON, and as tables for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vtprune.achieved import Achieved, in_words
from vtprune.at_flops import AtFlops, uncounted
from vtprune.cli.measure import Look, Times, agreement, middle, middle_ratio
from vtprune.cli.policies import plain_value, shown
from vtprune.records import IN_CACHE
from vtprune.report import Report
from vtprune.tokens import site_name


def pruned_numbers(look: Look, times: Times, report: Report) -> dict[str, Any]:
    """What was measured of the pruned model, and what its report computes (``*_predicted``, ``flops*``)."""
    before, after = report.tokens[0]
    sites = [{"site": site_name(one.site), "before": one.before[0], "after": one.after[0]} for one in report.sites]
    if report.last.cached:
        held = [sum(layer[0] for layer in counts) for counts in (report.last.cached.before, report.last.cached.after)]
        before, after = (round(tokens / len(report.last.cached.layers)) for tokens in held)
        sites.append({"site": f"{IN_CACHE}, mean of layers", "before": before, "after": after})
    return {
        "answer": look.answer,
        "visual_tokens": after,
        "visual_tokens_before": before,
        "sites": sites,
        "prefill_ms": middle(times.prefill),
        "token_ms": middle(times.token),
        "selector_ms": middle(times.selector),
        "budget": dataclasses.asdict(report.achieved()),
        "kv_bytes": look.kv_bytes,
        "kv_bytes_predicted": _if_known(lambda: report.kv_bytes_predicted),
        "kv_bytes_unpruned_predicted": _if_known(lambda: report.kv_bytes_unpruned),
        "flops": _if_known(lambda: report.flops.total_causal),
        "flops_unpruned": _if_known(lambda: report.flops_unpruned.total_causal),
        "flops_selector": _if_known(lambda: report.flops_selector.total_causal),
        "flops_vision": _if_known(lambda: report.flops_vision.total),
        "notes": report.notes,
    }


def _if_known(count: Callable[[], int]) -> int | None:
    """A number that the report computes; None for decoders and towers whose arithmetic it does not know."""
    try:
        return count()
    except NotImplementedError:
        return None


def plain_numbers(look: Look, times: Times) -> dict[str, Any]:
    """What was measured of the model without pruning."""
    return {
        "answer": look.answer,
        "prefill_ms": middle(times.prefill),
        "token_ms": middle(times.token),
        "kv_bytes": look.kv_bytes,
    }


def compared(pruned: Look, plain: Look, pruned_times: Times, plain_times: Times) -> dict[str, Any]:
    """Pruned over unpruned: medians over the rounds for times, and how far the next-token distributions agree."""
    bytes_known = pruned.kv_bytes is not None and plain.kv_bytes
    return {
        "same_answer": pruned.answer == plain.answer,
        "agreement": agreement(pruned.logits, plain.logits),
        "prefill_ratio": middle_ratio(pruned_times.prefill, plain_times.prefill),
        "token_ratio": middle_ratio(pruned_times.token, plain_times.token),
        "kv_ratio": pruned.kv_bytes / plain.kv_bytes if bytes_known else None,
    }


def policy_values(name: str, policy: object) -> dict[str, Any]:
    """A policy and its options as plain values."""
    if isinstance(policy, AtFlops):
        wanted = {"keep_ratio": policy.keep_ratio, "keep_flops": policy.keep_flops, "keep_ratio_is": "flops"}
        inner = policy_values(name, policy.policy)["options"]
        inner |= {"stages": list(map(uncounted, policy.stages))} if "stages" in inner else {}
        return {"name": name, "options": {**inner, "n_keep": None, **wanted}}
    fields = dataclasses.fields(policy) if dataclasses.is_dataclass(policy) else ()
    options = {field.name: plain_value(getattr(policy, field.name)) for field in fields if field.init}
    return {"name": name, "options": options}


def print_result(result: dict[str, Any]) -> None:
    """The tables and the lines below them."""
    from vtprune.cli.console import say, table

    policy, pruned, plain = result["policy"], result["pruned"], result["unpruned"]
    options = ", ".join(f"{k}={shown(v)}" for k, v in policy["options"].items() if v is not None)
    model = result["model"]
    say(f"model     {model['name']} ({model['model_type']}, {model['dtype']} on {model['device']})")
    say(f"policy    {policy['name']}{f' ({options})' if options else ''}")
    for video in result["videos"]:
        say(f"video     {_about(video)}")
    say(f"question  {result['prompt']}")
    answers = {"unpruned": plain, "pruned": pruned}
    for name, one in answers.items():
        if one is not None:
            say(f"{name:<8}  {one['answer'] or '(nothing)'}", style="bold")
    if result["right_answer"] is not None:
        say(f"right     {result['right_answer']}", style="bold")
    say("")
    columns = ("", "unpruned", "pruned", "pruned / unpruned") if plain else ("", "pruned")
    rows = _rows(pruned, plain, result["comparison"], result["decode_s"])
    table(columns, [row if plain else (row[0], row[2]) for row in rows], right=columns[1:])
    say("")
    table(
        ("site", "visual tokens before", "after"),
        [(site["site"], f"{site['before']:,}", f"{site['after']:,}") for site in pruned["sites"]],
        right=("visual tokens before", "after"),
    )
    if result["same_budget"]:
        _print_same_budget(result["same_budget"])
    for line in _remarks(result):
        say(line)


def _about(video: dict) -> str:
    """For instance "clip.mp4, 32 of 300 frames, 10.0 s, 640 x 360"."""
    width, height = video["size"]
    frames = f"{video['frames']:,} of {video['count']:,} frames"
    return f"{video['path']}, {frames}, {video['duration']:.1f} s, {width} x {height}"


def _print_same_budget(found: dict[str, Any]) -> None:
    """A line for each way to spend the visual tokens, in which a star marks those that spend as many."""
    from vtprune.cli.console import say, table

    say("")
    columns = (
        "",
        "frames",
        "visual tokens",
        "mean of layers",
        "answer",
        "prefill, ms",
        "KV cache, bytes",
        "decoding, s",
    )
    rows = [
        (
            f"{'*' if row['same_budget'] else ' '} {row['name']}",
            f"{row['frames']:,}",
            f"{row['visual_tokens_before']:,} -> {row['visual_tokens']:,}",
            f"{row['layer_mean']:,.0f}",
            row["answer"] or "(nothing)",
            _ms(row["prefill_ms"]),
            _count(row["kv_bytes"]),
            _seconds(row["decode_s"]),
        )
        for row in found["rows"]
    ]
    table(columns, rows, right=[*columns[1:4], *columns[5:]])
    spent = f"{found['budget']:,} visual tokens in the decoder ({found['counted']})"
    say(f"\n* {spent}. The vision tower sees every frame of a row.")
    if found["note"]:
        say(f"note: {found['note']}")
    for row in found["rows"]:
        # what the policy said of the pruned run itself is among the remarks
        if row["name"] not in ("unpruned", "pruned"):
            for text in row["notes"]:
                say(f"note: {row['name']}: {text}")


def _rows(
    pruned: dict, plain: dict | None, comparison: dict | None, decode_s: float | None
) -> list[tuple[str, str, str, str]]:
    """(what, unpruned, pruned, ratio) of each line."""
    plain, ratio = plain or {}, comparison or {}
    before, after = pruned["visual_tokens_before"], pruned["visual_tokens"]
    whole, left, layers = pruned["flops_unpruned"], pruned["flops"], pruned["budget"]["layers"]
    share = left / whole if whole else None
    times = [
        ("prefill, ms", _ms(plain.get("prefill_ms")), _ms(pruned["prefill_ms"]), _ratio(ratio.get("prefill_ratio"))),
        ("each later token, ms", _ms(plain.get("token_ms")), _ms(pruned["token_ms"]), _ratio(ratio.get("token_ratio"))),
        ("selecting (in prefill), ms", "-", _ms(pruned["selector_ms"]), ""),
    ]
    return [
        ("visual tokens", f"{before:,}", f"{after:,}", _ratio(after / before)),
        ("visual tokens, mean of layers", f"{before:,}", f"{before * layers:,.0f}", _ratio(layers)),
        *([("decoding, s", *[_seconds(decode_s)] * 2, "")] if decode_s is not None else ()),
        *(times if pruned["prefill_ms"] is not None else ()),
        ("KV cache, bytes", _count(plain.get("kv_bytes")), _count(pruned["kv_bytes"]), _ratio(ratio.get("kv_ratio"))),
        ("prefill FLOPs, decoder and signals", engineering(whole), engineering(left), _ratio(share)),
        ("FLOPs, vision tower and projector", *[engineering(pruned["flops_vision"])] * 2, ""),
    ]


def _remarks(result: dict[str, Any]) -> list[str]:
    lines = [f"\n{in_words([Achieved(**result['pruned']['budget'])])}"]
    lines += [f"note: {text}" for text in result["pruned"]["notes"]]
    comparison = result["comparison"]
    if comparison and comparison["agreement"] is not None:
        agree = f"{100 * comparison['agreement']:.1f} %"
        lines.append(f"\nThe distributions of the first answer token agree to {agree} (1 - total variation distance).")
    if result["runs"]:
        runs = f"{result['runs']} runs of {result['timed_tokens']} tokens"
        lines.append(f"Times are medians of {runs}; ratios are medians over pairs of runs.")
        lines.append("Prefill is the time to the first token, vision tower included.")
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def engineering(value: float | None) -> str:
    """1234567 -> "1.23 M"; "-" for None."""
    if value is None:
        return "-"
    for unit in ("", " k", " M", " G", " T"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} P"
