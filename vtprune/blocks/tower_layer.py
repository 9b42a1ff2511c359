"""Which layer of the vision tower a policy looks at, where it wants all patches of an image to see each other."""

from vtprune.tokens import ModelFacts


def check_tower_layer(layer: object) -> None:
    """Raises ValueError unless ``layer`` is an integer or None."""
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise ValueError(f"layer is the index of a layer of the vision tower, or None; got {layer!r}")


def whole_layer(layer: int | None, facts: ModelFacts, method: str) -> int:
    """``layer``, or the last without windows that the LLM reads where it is None, -1 where nothing is known.

    Raises ValueError for a layer whose patches see their own window alone.
    """
    whole = facts.whole_layers
    if layer is None:
        return max((index for index in whole if index < facts.used_layers), default=-1)
    if whole and -facts.tower_layers <= layer < facts.tower_layers and layer % facts.tower_layers not in whole:
        raise ValueError(
            f"{method} follows attention between all patches of an image, and in layer {layer} of this vision tower "
            f"they see their window alone: choose one of {', '.join(map(str, whole))}, or None for the last of them"
        )
    return layer
