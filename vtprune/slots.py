"""What the physical slots of a pruned cache layer hold: shared by all layers that were pruned alike."""

from __future__ import annotations

import torch
from torch import Tensor


class Slots:
    """Logical positions of the slots of a cache layer. Never changed in place, so layers can share one object.

    positions: (B, P) int64, the position in the unpruned conversation of the first P slots.
    valid:     (B, P) bool, False for slots that unequal counts left empty; None if all hold a token.
    length:    how long the unpruned conversation is.
    tail:      how many slots follow the P; they hold the last ``tail`` positions, in order.
    shift:     (B,) int64, by how much later positions are renumbered; None for original positions.
    bias:      (B, P) float, what is added to the scores of the keys in the first P slots; None for nothing.

    A decode step only counts: ``append`` returns the same successor to every layer that shares this object.
    """

    def __init__(
        self,
        positions: Tensor,
        valid: Tensor | None,
        length: int,
        tail: int = 0,
        shift: Tensor | None = None,
        bias: Tensor | None = None,
    ):
        self.positions, self.valid, self.length, self.tail, self.shift = positions, valid, length, tail, shift
        self.bias = bias
        self._memo: tuple | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_memo": None}

    @property
    def size(self) -> int:
        return self.positions.shape[1] + self.tail

    def append(self, n: int) -> Slots:
        """After ``n`` more tokens that were not pruned."""
        return self._once("append", n, lambda: self._with(length=self.length + n, tail=self.tail + n))

    def extend(
        self, columns: Tensor, valid: Tensor | None, n: int, shift: Tensor | None, bias: Tensor | None = None
    ) -> Slots:
        """After a forward over ``n`` tokens of which ``columns`` (B, K), where ``valid``, were kept, with ``bias``."""

        def build() -> Slots:
            positions, old, added = self.materialize()
            batch = columns.shape[0]
            positions = torch.cat([positions.to(columns.device).expand(batch, -1), columns + self.length], 1)
            flags = _joined(old, valid, batch, self.size, columns, torch.ones((), dtype=torch.bool))
            like = bias if bias is not None else added
            added = None if like is None else _joined(added, bias, batch, self.size, columns, like.new_zeros(()))
            return Slots(positions, flags, self.length + n, 0, shift, added)

        return self._once("extend", columns, build)

    def reorder(self, index: Tensor) -> Slots:
        """Rows picked by ``index``, as beam search and batch selection do."""

        def build() -> Slots:
            rows = index.to(self.positions.device)
            return self._with(
                positions=self.positions[rows],
                valid=None if self.valid is None else self.valid[rows],
                shift=None if self.shift is None else self.shift[rows],
                bias=None if self.bias is None else self.bias[rows],
            )

        return self._once("reorder", index, build)

    def repeat(self, times: int) -> Slots:
        """Every row ``times`` times in a row."""

        def build() -> Slots:
            rows = torch.arange(self.positions.shape[0], device=self.positions.device).repeat_interleave(times)
            return self.reorder(rows)

        return self._once("repeat", times, build)

    def crop(self, n: int) -> Slots:
        """Without the last ``n`` tokens, which must not have been pruned."""

        def build() -> Slots:
            if n <= self.tail:
                return self._with(length=self.length - n, tail=self.tail - n)
            positions, valid, bias = self.materialize()
            keep = positions.shape[1] - n
            if keep < 0 or bool((positions[:, keep:] != self._last(n, positions.device)).any()):
                raise ValueError(
                    f"crop(-{n}) would cut into pruned visual tokens; only tokens after the last image can be removed "
                    "from a pruned cache. Start again from the prompt"
                )
            valid, bias = (None if flags is None else flags[:, :keep] for flags in (valid, bias))
            return Slots(positions[:, :keep], valid, self.length - n, 0, self.shift, bias)

        return self._once("crop", n, build)

    def materialize(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Positions, valid and bias of all slots, tail included: (B, size), and (B, size) or None."""
        if not self.tail:
            return self.positions, self.valid, self.bias
        batch, device = self.positions.shape[0], self.positions.device
        positions = torch.cat([self.positions, self._last(self.tail, device).expand(batch, -1)], 1)
        valid = None if self.valid is None else torch.cat([self.valid, self.valid.new_ones(batch, self.tail)], 1)
        bias = None if self.bias is None else torch.cat([self.bias, self.bias.new_zeros(batch, self.tail)], 1)
        return positions, valid, bias

    def _last(self, n: int, device: torch.device) -> Tensor:
        return torch.arange(self.length - n, self.length, device=device)[None]

    def _with(self, **changes) -> Slots:
        fields = {name: getattr(self, name) for name in ("positions", "valid", "length", "tail", "shift", "bias")}
        return Slots(**{**fields, **changes})

    def _once(self, what: str, key: object, build) -> Slots:
        # layers ask one after the other for the same successor; only the last answer is worth keeping
        memo = self._memo
        if memo is not None and memo[0] == what and (memo[1] is key or (type(key) is int and memo[1] == key)):
            return memo[2]
        result = build()
        self._memo = (what, key, result)
        return result


def _joined(
    old: Tensor | None, new: Tensor | None, batch: int, size: int, columns: Tensor, usual: Tensor
) -> Tensor | None:
    """What is said of ``size`` old slots and of ``columns`` (B, K) new ones, ``usual`` where nothing is; or None."""
    if old is None and new is None:
        return None
    parts = ((old, size), (new, columns.shape[1]))
    return torch.cat([(usual if part is None else part).to(columns.device).expand(batch, n) for part, n in parts], 1)
