"""What other packages say meanwhile: nothing; warnings of vtprune become notes, a lack of memory one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtprune.cli.error import UserError


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice of transformers meanwhile; errors are ours to tell."""
    from transformers.utils import logging as advice

    level, bars = advice.get_verbosity(), advice.is_progress_bar_enabled()
    advice.set_verbosity_error()
    advice.disable_progress_bar()
    try:
        yield
    finally:
        advice.set_verbosity(level)
        if bars:
            advice.enable_progress_bar()


@contextmanager
def notes_instead_of_warnings() -> Iterator[None]:
    """Warnings of vtprune become notes of one line on the error stream; those of other packages are left out."""
    from vtprune.cli.console import note

    # Pillow tells its logger about damage that it then raises
    pillow = logging.getLogger("PIL")
    level = pillow.level
    pillow.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        pillow.setLevel(level)
    own = Path(__file__).parent
    for warning in caught:
        if own in Path(warning.filename).parents:
            note(str(warning.message))


@contextmanager
def out_of_memory(device) -> Iterator[None]:
    """Tells in one line that the device's memory was not enough."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{device} has not enough memory for this model and prompt; use --dtype bfloat16, a smaller picture, fewer "
            "--frames, or --device cpu"
        ) from error
