"""Evicting in decode steps: when an entry goes again, and which slot of the cache it leaves."""


def forgotten(length: int, seen: int, dropped: float) -> int:
    """How many entries a layer has too many: int(length - seen * (1 - dropped)), at least 0.

    length: entries it holds. seen: tokens of the prompt and the answer so far. dropped: the layer's fraction of these.
    """
    return max(0, int(length - seen * (1 - dropped)))


def fixed_slot(kept: int, distance: int = -25) -> int:
    """The slot that one entry leaves in each step that has too many: ``distance`` from the end of the kept prompt.

    kept: entries of the prompt that were kept. Half of them where that would be before the second slot.
    """
    slot = kept + distance
    return slot if slot >= 1 else kept // 2
