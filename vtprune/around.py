"""What a policy that goes around another one passes on of it."""

from __future__ import annotations

from typing import ClassVar


class Around:
    """Mixed in by policies that ask another one: where that acts, what it reads, and its other wishes.

    inner: the name of the attribute that holds it.
    """

    inner: ClassVar[str] = "policy"

    @property
    def _inner(self):
        return getattr(self, self.inner)

    @property
    def needs(self) -> frozenset[str]:
        return self._inner.needs

    @property
    def sites(self) -> tuple[float, ...]:
        return tuple(self._inner.sites)

    @property
    def positions(self) -> str:
        return getattr(self._inner, "positions", "original")

    @property
    def newlines(self) -> bool:
        return getattr(self._inner, "newlines", False)

    @property
    def proportional(self) -> bool:
        return getattr(self._inner, "proportional", False)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(getattr(self._inner, "notes", ()))
