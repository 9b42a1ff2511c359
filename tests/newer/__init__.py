"""Tiny random models of the families beyond the first 14: one file for each kind, found by being here."""

from importlib import import_module
from pkgutil import iter_modules

from tests.newer.base import NEWER

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["NEWER"]
