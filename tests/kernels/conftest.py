"""Memory that was not written to shows: ``torch.empty`` and its relatives are filled with NaN or an absurd integer."""

import pytest
import torch
from torch import Tensor


def poison(x: Tensor) -> Tensor:
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return x.fill_(float("nan"))
    return x.fill_(True) if x.dtype == torch.bool else x.fill_(torch.iinfo(x.dtype).max - 1)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """Every test of the kernels runs with poisoned allocations."""

    def poisoned(function):
        return lambda *args, **kwargs: poison(function(*args, **kwargs))

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
