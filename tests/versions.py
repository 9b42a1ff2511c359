"""The matrix of families on several transformers releases: ``python -m tests.versions`` (``make test-matrix``).

Each release gets an environment of its own, made by uv and kept for the next time. What passed is written to
``vtprune/families/tested.json``, from which the table of families is made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "vtprune" / "families" / "tested.json"
RELEASES = ("5.9.0", "5.16.1", "5.23.0")
"""The floor, one between, and the newest."""

FILES = (
    "tests/test_identity.py",
    "tests/test_oracle_matrix.py",
    "tests/test_newer_families.py",
    "tests/test_hybrids.py",
    "tests/test_hybrid_families.py",
    "tests/test_video_families.py",
    "tests/test_compat.py",
    "tests/policies/test_batches.py",
)
EXTRAS = "dev,kernels"


def families() -> list[str]:
    """The families that have tiny models."""
    from tests import tiny

    return [*tiny.FAMILIES, *tiny.NEWER]


def settings_of_pip() -> dict[str, str]:
    """uv's settings that say where packages are, as pip was told; uv does not read pip's."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    names = {"find-links": "UV_FIND_LINKS", "extra-index-url": "UV_EXTRA_INDEX_URL", "index-url": "UV_DEFAULT_INDEX"}
    # pip looks at all places alike
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        name = names.get(key.rpartition(".")[2])
        if name:
            found[name] = value.strip("'\"")
    return found


def make_environment(folder: Path, release: str) -> Path:
    """An environment with this release and otherwise the pinned versions; its interpreter."""
    import torch

    python = folder / "bin" / "python"
    if (folder / ".done").exists():
        return python
    pins = (ROOT / "requirements" / "ci.txt").read_text(encoding="utf-8").splitlines()
    free = ("transformers", "tokenizers", "huggingface_hub", "hf-xet", "torch", "torchvision")
    kept = [line for line in pins if not line.startswith("#") and re.split("[=<>]", line)[0] not in free]
    folder.parent.mkdir(parents=True, exist_ok=True)
    constraints = folder.parent / f"constraints-{release}.txt"
    constraints.write_text("\n".join([*kept, f"transformers=={release}", f"torch=={torch.__version__}"]), "utf-8")
    environment = {**os.environ, **settings_of_pip()}
    uv = [sys.executable, "-m", "uv", "-q"]
    subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True, env=environment)
    install = [*uv, "pip", "install", "--python", str(python), "-c", str(constraints), "-e", f".[{EXTRAS}]"]
    subprocess.run(install, check=True, env=environment, cwd=ROOT)
    (folder / ".done").touch()
    return python


def run(python: Path, report: Path, files: Sequence[str], jobs: int, more: Sequence[str]) -> None:
    """pytest with its slow tests; a failure is for the report to tell."""
    present = [file for file in files if (ROOT / file).exists()]
    command = [str(python), "-m", "pytest", "-q", "-n", str(jobs), f"--junitxml={report}", *present, *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=False)


def summary(report: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """For each family and kind of prompt: passed, failed, or absent where the release lacks it; from pytest's XML."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, rest = case.get("name", "").partition("[")
        parameters = rest.rstrip("]").split("-")
        kind = "video" if "clip" in test or "video" in test else "image"
        outcomes = {child.tag for child in case}
        what = "failed" if outcomes & {"failure", "error"} else "absent" if "skipped" in outcomes else "passed"
        for family in names:
            if family in parameters:
                found[family, kind].add(what)
    verdicts: dict[str, dict[str, str]] = {}
    for (family, kind), seen in sorted(found.items()):
        verdicts.setdefault(family, {})[kind] = next(what for what in ("failed", "passed", "absent") if what in seen)
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", nargs="+", default=list(RELEASES), help="of transformers")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-matrix", help="where environments are made")
    parser.add_argument("--jobs", type=int, default=2, help="processes of pytest")
    parser.add_argument("--dry", action="store_true", help="do not write the result")
    arguments, more = parser.parse_known_args(argv)
    found, bad = {}, 0
    for release in arguments.release:
        folder = (arguments.folder / release).absolute()
        report = folder.parent / f"report-{release}.xml"
        run(make_environment(folder, release), report, FILES, arguments.jobs, more)
        found[release] = summary(report, families())
        bad += sum("failed" in kinds.values() for kinds in found[release].values())
        sys.stdout.write(f"{release}: {found[release]}\n")
    if not arguments.dry:
        # read last, as other releases may have been run meanwhile
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        for release, verdicts in found.items():
            # with pytest's -k some families are not run, and what is known of them stays
            both = {**known.get(release, {}), **verdicts}
            known[release] = {family: both[family] for family in sorted(both) if family in families()}
        newest_first = sorted(known.items(), key=lambda item: [int(part) for part in item[0].split(".")])
        RESULT.write_text(json.dumps(dict(newest_first), indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
