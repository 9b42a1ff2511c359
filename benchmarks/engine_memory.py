"""Peak memory of a prefill and two decode steps, each configuration in a fresh process, above the loaded model."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

import vtprune
from benchmarks.engine_model import SHAPES, Steps, build, prefill, prompt, short_prompt
from benchmarks.measure import ROOT, peak_bytes
from vtprune.tokens import BEFORE_LLM, site_name

TOLERANCE = 8 << 20
"""Bytes by which two peaks of resident memory can differ for no reason."""

UNPRUNED = {"policy": None}


def settings(keep_ratios: Sequence[float], layer: int) -> list[dict]:
    """What is measured: unpruned first, then everything kept, then each ratio before the LLM and at ``layer``."""
    pruned = [{"policy": "random", "keep_ratio": r, "layer": at} for r in keep_ratios for at in (BEFORE_LLM, layer)]
    return [UNPRUNED, {"policy": "none"}, *pruned]


def measure_here(shape: str, dtype: str, device: str, images: int, n_text: int, setting: dict) -> int | None:
    """The peak in this process, whose only work this is."""
    torch.set_num_threads(1)
    model = build(SHAPES[shape], getattr(torch, dtype), device)
    options = dict(setting)
    policy = options.pop("policy")
    if policy:
        vtprune.wrap(model, policy, **options)
    # lazily loaded code and first-use buffers are no part of it
    small = short_prompt(model, [8], n_text)
    Steps(model, small, prefill(model, small))()
    inputs = prompt(model, [images], n_text)

    def run():
        steps = Steps(model, inputs, prefill(model, inputs))
        steps(), steps()
        return steps

    return peak_bytes(run)


def memory_rows(
    arguments: Sequence[str], wanted: Sequence[dict], tell: Callable[[str], None], at_once: int = 2
) -> list[dict]:
    """A row for each setting. arguments: the command line of this module without ``--setting``."""

    def child(setting: dict) -> dict:
        command = [sys.executable, "-m", "benchmarks.engine_memory", *arguments, "--setting", json.dumps(setting)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        tell(f"memory: {name_of(setting)}")
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        return json.loads(done.stdout.strip().splitlines()[-1])

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(child, wanted))
    return judged(wanted, found)


def judged(wanted: Sequence[dict], found: Sequence[dict]) -> list[dict]:
    """Rows with the share of the unpruned peak, the first one's."""
    rows, whole = [], found[0].get("peak_bytes")
    for setting, result in zip(wanted, found, strict=True):
        row = {"what": "peak memory", "runner": name_of(setting), **setting, **result}
        if "layer" in setting:
            row["site"] = site_name(row.pop("layer"))
        peak = result.get("peak_bytes")
        if setting is not wanted[0] and peak is not None and whole:
            row |= {"share": peak / whole, "bound": f"peak_bytes <= unpruned + {TOLERANCE}"}
            row["verdict"] = "met" if peak <= whole + TOLERANCE else "missed"
        rows.append(row)
    return rows


def name_of(setting: dict) -> str:
    if not setting["policy"]:
        return "unpruned"
    where = f" {site_name(setting['layer'])}" if "layer" in setting else ""
    return f"{setting['policy']}{where}" + (f" {setting['keep_ratio']:g}" if "keep_ratio" in setting else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the peak of one setting as JSON; benchmarks.engine calls it.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--setting", type=json.loads, default=UNPRUNED, help='such as {"policy": "none"}')
    args = parser.parse_args()
    peak = measure_here(args.shape, args.dtype, args.device, args.images, args.text, args.setting)
    print(json.dumps({"visual": args.images * 576, "text": args.text, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
