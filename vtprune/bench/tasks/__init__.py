"""The tasks: one small file each; importing the folder registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from vtprune.bench.tasks.base import TASKS, Scored, Task, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["TASKS", "Scored", "Task", "register"]
