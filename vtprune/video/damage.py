"""What decoders raise on damaged files, and how it reads."""

from __future__ import annotations

import struct

DAMAGE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
DAMAGE += (MemoryError, struct.error)
"""Raised by Pillow and by the Python side of the video libraries, whose own errors are often none of these."""


def reason(error: BaseException) -> str:
    """One line of what went wrong, without the path, which whoever catches it knows."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:300] or type(error).__name__
