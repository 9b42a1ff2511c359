"""gather_tokens: reference and kernel against rows picked one by one in Python, by bits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vtprune_kernels import gather, gather_tokens, gather_tokens_reference

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.gather_triton import gather_tokens_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
SHAPES = [(1, 1, 1, 1), (2, 5, 3, 7), (3, 17, 9, 33), (1, 40, 64, 1024), (2, 3, 2, 1025), (2, 4, 11, 2100)]
EMPTY = [(0, 4, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0), (2, 0, 0, 5), (0, 0, 0, 0)]


def picked(x: Tensor, columns: Tensor) -> Tensor:
    """The oracle: one row after the other, as Python lists say."""
    rows = [x[b, i] for b, row in enumerate(columns.tolist()) for i in row]
    return torch.stack(rows).reshape(*columns.shape, x.shape[2])


def random_case(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every bit pattern is likely, NaN and infinities included: a copy must keep them all."""
    B, L, K, D = shape
    g = torch.Generator().manual_seed(sum(shape))
    bits = BITS.get(dtype, dtype)
    x = torch.randint(torch.iinfo(bits).min, torch.iinfo(bits).max, (B, L, D), generator=g, dtype=bits).view(dtype)
    return x.to(DEVICE), torch.randint(0, L, (B, K), generator=g).to(DEVICE)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(BITS.get(x.dtype, x.dtype))


@pytest.mark.parametrize("run", [gather_tokens, gather_tokens_reference, gather_tokens_triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_copied_bit_for_bit(run, dtype, shape):
    """Oracle: rows picked one by one. Widths below, at and above one block of the kernel; repeated columns."""
    x, columns = random_case(shape, dtype)
    y = run(x, columns)
    assert y.dtype == dtype
    assert torch.equal(bits(y), bits(picked(x, columns)))


@pytest.mark.parametrize("run", [gather_tokens, gather_tokens_reference, gather_tokens_triton])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_nothing_in_gives_nothing_out(run, shape):
    B, L, K, D = shape
    y = run(torch.ones(B, L, D, device=DEVICE), torch.zeros(B, K, dtype=torch.int64, device=DEVICE))
    assert y.shape == (B, K, D)


@pytest.mark.parametrize("run", [gather_tokens, gather_tokens_reference, gather_tokens_triton])
def test_strides_do_not_matter(run):
    """Oracle: rows picked one by one from a transposed, a sliced and an expanded tensor, by sliced columns."""
    x, columns = random_case((3, 16, 8, 12), torch.float32)
    for view in (x.transpose(1, 2)[:, :, :9], x[:, 2::3], x[:, :, ::2], x[:1].expand(3, -1, -1)):
        short = (columns % view.shape[1])[:, ::2]
        assert not view.is_contiguous() and not short.is_contiguous()
        y = run(view, short)
        assert torch.equal(bits(y), bits(picked(view, short))) and y.is_contiguous()


def test_kernel_reads_beyond_two_to_the_31():
    """Oracle: two rows written by hand beyond number 2**31. The pages that nobody touches cost no memory."""
    D = 1024
    L = 2**31 // D + 4
    x = torch.from_numpy(np.zeros((1, L, D), dtype=np.uint8))
    x[0, L - 1], x[0, L - 3] = 7, 9
    y = gather_tokens_triton(x.to(DEVICE), torch.tensor([[L - 1, 0, L - 3]], device=DEVICE))
    assert y[0, :, 0].tolist() == y[0, :, -1].tolist() == [7, 0, 9]


def test_unwritten_memory_would_show():
    """The poison under these tests works: a kernel that leaves a number unwritten leaves a NaN."""
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(2).isnan().all()
    assert torch.empty_like(torch.ones(3, dtype=torch.int64)).unique().tolist() == [2**63 - 2]


@pytest.mark.parametrize(
    ("x", "columns", "error", "says"),
    [
        (torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.int64), ValueError, r"\(2, 3\)"),
        (torch.ones(2, 3, 4), torch.zeros(1, 1, dtype=torch.int64), ValueError, r"\(1, 1\)"),
        (torch.ones(2, 3, 4), torch.zeros(2, 1, dtype=torch.int32), TypeError, r"int32.*columns\.long\(\)"),
        (torch.ones(1, 3, 4), torch.tensor([[0, 3]]), ValueError, r"\[0, 3\).*0\.\.3"),
        (torch.ones(1, 3, 4), torch.tensor([[-1, 2]]), ValueError, r"-1\.\.2"),
        (torch.ones(2, 3, 4, device="meta"), torch.zeros(2, 1, dtype=torch.int64), ValueError, "meta and cpu"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(x, columns, error, says):
    with pytest.raises(error, match=says):
        gather_tokens(x, columns)


def test_dispatch_asks_for_the_kernel(monkeypatch):
    """Oracle: which of the two was called; the answer is the same."""
    x, columns = random_case((2, 5, 3, 7), torch.float32)
    called = []
    monkeypatch.setattr("vtprune_kernels.gather_triton.gather_tokens_triton", lambda *args: called.append(args))
    monkeypatch.setattr(gather, "use_triton", lambda *tensors: True)
    gather_tokens(x, columns)
    assert len(called) == 1 and called[0][0] is x and called[0][1] is columns


@pytest.mark.gpu
def test_kernel_equals_reference_on_a_gpu_at_real_sizes():
    """Oracle: torch's gather on the same device, by bits, at the widths and lengths of a 7B model."""
    g = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(2, 8192, 3584, generator=g, device="cuda", dtype=torch.bfloat16)
    columns = torch.randint(0, 8192, (2, 2048), generator=g, device="cuda")
    assert torch.equal(bits(gather_tokens_triton(x, columns)), bits(gather_tokens_reference(x, columns)))


@pytest.mark.gpu
def test_kernel_writes_beyond_two_to_the_31_on_a_gpu():
    """Oracle: one row repeated until the answer has more than 2**31 numbers; its first and last row are that row."""
    x = torch.arange(1024, device="cuda").to(torch.uint8)[None, None]
    y = gather_tokens_triton(x, torch.zeros(1, 2**21 + 4, dtype=torch.int64, device="cuda"))
    assert torch.equal(y[0, 0], x[0, 0]) and torch.equal(y[0, -1], x[0, 0])
