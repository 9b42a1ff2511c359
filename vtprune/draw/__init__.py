"""Drawings of what was kept: a picture with its dropped tokens dimmed, a clip as a sheet of panels over time."""

from vtprune.draw.contact_sheet import contact_sheet
from vtprune.draw.picture import caption, overlay, side_by_side, stack

__all__ = ["caption", "contact_sheet", "overlay", "side_by_side", "stack"]
