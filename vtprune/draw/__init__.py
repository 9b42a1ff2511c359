"""Drawings of what was kept: a picture with dropped tokens dimmed, scores as colours, a clip as panels over time."""

from vtprune.draw.contact_sheet import contact_sheet
from vtprune.draw.heat import heat_map, score_cells
from vtprune.draw.picture import caption, overlay, side_by_side, stack
from vtprune.draw.token_map import token_map

__all__ = [
    "caption",
    "contact_sheet",
    "heat_map",
    "overlay",
    "score_cells",
    "side_by_side",
    "stack",
    "token_map",
]
