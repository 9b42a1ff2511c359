"""Each operation of ``vtprune_kernels`` on made-up inputs: the call, plain torch for the same, the least work it is.

Attention and greedy selection have a file of their own, ``benchmarks.kernels_selection``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

KEEP = 4
"""One of so many visual tokens is kept, or becomes a group."""
TEXT = 64
HEAD = 128


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    inputs:  the tensors, as the forms take them. ours: the public operation. reference: its definition in torch.
    plain:   the best that a few lines of torch do, in float32 where ours sums in it; the oracle, given float64.
    literal: as the publications write it, or None; ``about`` says what that is.
    shapes:  for the table. moved, flops: the bytes that must at least be read and written, and the FLOPs.
    exact:   bits must be equal; "picks" counts those that are.
    growth:  the power of N by which time grows, at most; to foresee what would take too long.
    """

    inputs: tuple
    ours: Callable
    reference: Callable
    plain: Callable
    shapes: str
    moved: int
    flops: int = 0
    literal: Callable | None = None
    about: str = ""
    exact: bool | str = False
    growth: int = 1


def operations(name: str) -> ModuleType:
    """A module of ``vtprune_kernels``. Raises ImportError where it is not there."""
    return importlib.import_module(f"vtprune_kernels.{name}")


def noise(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Normal numbers, the same in every run on one device."""
    generator = torch.Generator(device).manual_seed(shape[0])
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


def kept_columns(n: int, device: str) -> Tensor:
    """(1, K) int64: the text around N visual tokens, and every fourth of those, ascending."""
    visual = torch.arange(TEXT // 4, TEXT // 4 + n, KEEP)
    text = [torch.arange(TEXT // 4), torch.arange(TEXT // 4 + n, TEXT + n)]
    return torch.cat([text[0], visual, text[1]])[None].to(device)


# ------------------------------------------------------------------------------------------------ rows that move


def gather(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module = operations("gather")
    x, columns = noise(1, n + TEXT, d, dtype=dtype, device=device), kept_columns(n, device)
    mask = torch.zeros(1, n + TEXT, dtype=torch.bool, device=device).index_fill_(1, columns[0], True)
    return Case(
        (x, columns),
        module.gather_tokens,
        module.gather_tokens_reference,
        lambda x, columns: x[:, columns[0]],
        f"{tuple(x.shape)} -> {columns.shape[1]} rows",
        2 * columns.numel() * d * dtype.itemsize + columns.nbytes,
        literal=lambda x, columns: x[mask][None],
        about="a boolean mask, which waits for the device",
        exact=True,
    )


def gather_site(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    """Hidden states, two rotary tables and positions, as one site takes them."""
    module, columns = operations("gather_site"), kept_columns(n, device)
    length = n + TEXT
    hidden, cos, sin = (noise(1, length, w, dtype=dtype, device=device) for w in (d, HEAD, HEAD))
    positions = torch.arange(length, device=device)[None, :, None].contiguous()

    def plain(*inputs: Tensor) -> tuple[Tensor, ...]:
        *tensors, columns = inputs
        return tuple(x[:, columns[0]] for x in tensors)

    def ours(*inputs: Tensor) -> tuple[Tensor, ...]:
        return module.gather_site(inputs[:-1], inputs[-1])

    def reference(*inputs: Tensor) -> tuple[Tensor, ...]:
        return module.gather_site_reference(inputs[:-1], [inputs[-1]] * 4, [1] * 4, None)

    moved = 2 * columns.numel() * ((d + 2 * HEAD) * dtype.itemsize + 8) + columns.nbytes
    shapes = f"(1, {length}, {d} + {HEAD} + {HEAD} + 1) -> {columns.shape[1]} rows"
    return Case((hidden, cos, sin, positions, columns), ours, reference, plain, shapes, moved, exact=True)


def _ragged(n: int, device: str) -> tuple[Tensor, list[int]]:
    """(4, N / 4) bool with padding on the left, as ragged batches have it, and how many are True in each."""
    length = max(1, n // 4)
    counts = [max(1, length * share // 8) for share in (8, 7, 5, 4)]
    starts = torch.tensor([length - count for count in counts])[:, None]
    return (torch.arange(length) >= starts).to(device), counts


def pack(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module = operations("pack")
    valid, counts = _ragged(n, device)
    x, total = noise(*valid.shape, d, dtype=dtype, device=device), sum(counts)
    return Case(
        (x, valid),
        lambda x, valid: module.pack(x, valid, counts=counts)[0],
        lambda x, valid: module.pack_reference(x, valid, total),
        lambda x, valid: x[valid],
        f"{tuple(x.shape)} -> {total} rows",
        2 * total * d * dtype.itemsize + valid.nbytes,
        exact=True,
    )


def unpack(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module = operations("pack")
    valid, counts = _ragged(n, device)
    packed = noise(sum(counts), d, dtype=dtype, device=device)
    ends = F.pad(torch.tensor(counts).cumsum(0), (1, 0)).to(device, torch.int32)

    def plain(packed: Tensor, ends: Tensor, valid: Tensor) -> Tensor:
        out = packed.new_zeros(*valid.shape, packed.shape[1])
        out[valid] = packed
        return out

    return Case(
        (packed, ends, valid),
        lambda packed, ends, valid: module.unpack(packed, ends, length=valid.shape[1]),
        lambda packed, ends, valid: module.unpack_reference(packed, ends, valid.shape[1], None, "left"),
        plain,
        f"{tuple(packed.shape)} -> {tuple(valid.shape)}",
        packed.nbytes + valid.numel() * d * dtype.itemsize,
        exact=True,
    )


# ------------------------------------------------------------------------------------------ rows that are computed


def merge(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module, groups = operations("merge"), max(1, n // KEEP)
    x = noise(n, d, dtype=dtype, device=device)
    assignment = torch.randint(0, groups, (n,), generator=torch.Generator().manual_seed(n)).to(device)

    def plain(x: Tensor, assignment: Tensor) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        sums = torch.zeros(groups, x.shape[1], dtype=precise, device=x.device)
        sums.index_add_(0, assignment, x.to(precise))
        counts = torch.bincount(assignment, minlength=groups).clamp(min=1)
        return (sums / counts[:, None]).to(x.dtype)

    def literal(x: Tensor, assignment: Tensor) -> Tensor:
        rows = [x[assignment == group] for group in range(groups)]
        return torch.stack([some.float().mean(0) if len(some) else some.new_zeros(x.shape[1]).float() for some in rows])

    return Case(
        (x, assignment),
        lambda x, assignment: module.merge_tokens(x, assignment, None, groups),
        lambda x, assignment: module.merge_tokens_reference(x, assignment, None, groups),
        plain,
        f"{tuple(x.shape)} -> {groups} groups",
        (n + groups) * d * dtype.itemsize + assignment.nbytes,
        literal=literal,
        about="group by group",
    )


def frames_of(n: int) -> tuple[int, int]:
    """Frames and tokens of each, of about ``n`` tokens."""
    each = next((size for size in (256, 144, 36, 4, 1) if n % size == 0 and n // size > 1), 1)
    return n // each, each


def frame_similarity(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module = operations("frame_similarity")
    x = noise(*frames_of(n), d, dtype=dtype, device=device)

    def plain(x: Tensor) -> Tensor:
        now = x if x.dtype == torch.float64 else x.float()
        return F.pad(F.cosine_similarity(now[1:], now[:-1], dim=-1), (0, 0, 1, 0), value=-2)

    def literal(x: Tensor) -> Tensor:
        out = [[-2.0] * x.shape[1]]
        for before, now in zip(x[:-1].float(), x[1:].float()):
            out.append([float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(now, before)])
        return torch.tensor(out)

    same = (module.frame_similarity, module.frame_similarity_reference, plain)
    about = "place by place"
    return Case((x,), *same, f"{tuple(x.shape)}", x.nbytes + 4 * n, 6 * n * d, literal=literal, about=about)


def transition(n: int, d: int, dtype: torch.dtype, device: str) -> Case:
    module = operations("transition")
    x = noise(1, n, d, dtype=dtype, device=device)
    out = x.roll(1, 1) * 0.5 + x

    def plain(x: Tensor, out: Tensor) -> Tensor:
        x, out = (t if t.dtype == torch.float64 else t.float() for t in (x, out))
        turn = (1 - F.cosine_similarity(x, out, dim=-1)).exp()
        return out.norm(dim=-1) / x.norm(dim=-1) * (turn / turn.sum(1, keepdim=True))

    same = (module.transition, module.transition_reference, plain)
    return Case((x, out), *same, f"2 x {tuple(x.shape)}", 2 * x.nbytes + 4 * n, 6 * n * d)
