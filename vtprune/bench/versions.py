"""Which code answered: versions of packages and, in a checkout, the commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("transformers", "accelerate", "triton", "flash-attn", "numpy", "pillow", "av")


@cache
def versions() -> dict[str, str]:
    """The versions that answers depend on."""
    from vtprune import __version__

    found = {"python": platform.python_version(), "vtprune": __version__, "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """The commit of the checkout that runs, "+changes" where files differ from it; None of an installed package."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
