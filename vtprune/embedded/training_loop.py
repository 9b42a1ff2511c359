"""One training loop for both stages: AdamW, warm-up then linear decay over a time budget, resumable checkpoints."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 50  # steps


class Checkpoint:
    """What is being trained, AdamW's moments, step number and seconds spent, in one safetensors file."""

    def __init__(self, path: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer):
        self.path, self.optimizer = path, optimizer
        self.parameters = {name: value for name, value in modules.named_parameters() if value.requires_grad}

    def save(self, step: int, seconds: float) -> None:
        tensors = {f"weight/{name}": value.detach().clone() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for key, moment in self.optimizer.state.get(value, {}).items():
                tensors[f"{key}/{name}"] = moment.detach().clone()
        fresh = self.path.with_suffix(".new")
        save_file(tensors, fresh, metadata={"step": str(step), "seconds": str(seconds)})
        fresh.replace(self.path)  # a run killed while writing keeps the older file

    def load(self) -> tuple[int, float]:
        """Restores what ``save`` wrote; returns (step, seconds), both 0 when there is no file yet."""
        if not self.path.exists():
            return 0, 0.0
        with safe_open(self.path, "pt") as file, torch.no_grad():
            stored = set(file.keys())
            for name, value in self.parameters.items():
                value.copy_(file.get_tensor(f"weight/{name}"))
                moments = {key: f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
                if stored.issuperset(moments.values()):
                    self.optimizer.state[value] = {key: file.get_tensor(entry) for key, entry in moments.items()}
            return int(file.metadata()["step"]), float(file.metadata()["seconds"])


def train(
    modules: nn.ModuleDict,
    loss_of: Callable[[int, float], tuple[Tensor, dict[str, float]]],
    path: Path,
    *,
    minutes: float,
    learning_rate: float,
    warmup: int = 100,
) -> tuple[int, float]:
    """Trains what requires a gradient in ``modules`` for ``minutes``, going on from ``path`` if it exists.

    loss_of: (step, fraction of the time budget spent) -> (loss, figures to log).
    Returns the steps and seconds of training so far, those before an interruption included.
    """
    parameters = [value for value in modules.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    checkpoint = Checkpoint(path, modules, optimizer)
    step, seconds = checkpoint.load()
    saved, budget = seconds, minutes * 60
    while seconds < budget:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / warmup) * max(0.02, 1 - seconds / budget)
        loss, figures = loss_of(step, seconds / budget)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seconds = step + 1, seconds + time.perf_counter() - start
        if step % LOG_EVERY == 0:
            text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            LOG.info("%s step %d, %.0f s: loss %.4f %s", path.stem, step, seconds, loss.item(), text)
        if seconds - saved > SAVE_EVERY:
            checkpoint.save(step, seconds)
            saved = seconds
    checkpoint.save(step, seconds)
    return step, seconds
