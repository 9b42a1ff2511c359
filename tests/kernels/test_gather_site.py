"""gather_site: reference and kernel against entries picked one by one in Python, by bits."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune_kernels.gather_site import gather_site, gather_site_reference

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.gather_site_triton import gather_site_triton  # noqa: E402

module = importlib.import_module("vtprune_kernels.gather_site")  # the package has the function of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [gather_site_reference, gather_site_triton]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]


def picked_rows(x: Tensor, columns: Tensor, dim: int) -> Tensor:
    """The oracle for tensors: one entry of the sequence after the other, as Python lists say."""
    one = x.shape[dim - 1] == 1
    samples = [
        torch.stack([x.select(dim - 1, 0 if one else b).select(dim - 1, c) for c in row], dim - 1)
        for b, row in enumerate(columns.tolist())
    ]
    return torch.stack(samples, dim - 1)


def picked_mask(mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The oracle for masks: number after number."""
    samples = []
    for b, (rows, cells) in enumerate(zip(queries.tolist(), keys.tolist(), strict=True)):
        part = mask[0 if len(mask) == 1 else b]
        samples.append([[[part[h, q, k].item() for k in cells] for q in rows] for h in range(len(part))])
    return torch.tensor(samples, dtype=mask.dtype)


def same_bits(x: Tensor, y: Tensor) -> bool:
    words = WORDS[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.cpu().contiguous().view(words), y.cpu().contiguous().view(words))


def anything(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Every bit pattern is likely, NaN and infinities included."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    words = WORDS[dtype.itemsize]
    return torch.randint(torch.iinfo(words).min, torch.iinfo(words).max, shape, generator=g, dtype=words).view(dtype)


def on_device(*values) -> list:
    return [v.to(DEVICE) if isinstance(v, Tensor) else v for v in values]


def columns_below(length: int, batch: int, kept: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, length, (batch, kept), generator=g)


@pytest.mark.parametrize("run", RUNS)
@settings(max_examples=20)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    kept=st.integers(1, 7),
    parts=st.lists(
        st.tuples(
            st.sampled_from([(), (3,), (2, 2)]),
            st.booleans(),
            st.sampled_from([(), (1,), (5,), (2, 17), (1025,)]),
            st.sampled_from(DTYPES),
        ),
        max_size=5,
    ),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_everything_is_copied_bit_for_bit(run, batch, length, kept, parts, masked, seed):
    """Oracle: entries picked one by one. Up to five tensors and a mask of any form: launches full, split and shared."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(*outer, 1 if one else batch, length, *inner) for outer, one, inner, _ in parts]
    tensors = [anything(shape, part[3], g).to(DEVICE) for shape, part in zip(shapes, parts, strict=True)]
    columns = [columns_below(length, batch, kept, g).to(DEVICE) for _ in parts]
    dims = [len(outer) + 1 for outer, *_ in parts]
    mask = None
    if masked:
        mask = anything((1 if seed % 2 else batch, 2, length, length + 3), torch.float32, g)
        mask = on_device(mask, columns_below(length, batch, kept, g), columns_below(length + 3, batch, kept + 2, g))
    out = run(tensors, columns, dims, mask)
    expected = [picked_rows(*item) for item in zip(tensors, columns, dims, strict=True)]
    assert len(out) == len(parts) + masked
    assert all(same_bits(y, e) for y, e in zip(out, expected, strict=False))
    if masked:
        nan = mask[0].isnan()
        assert same_bits(out[-1].nan_to_num(7), picked_mask(mask[0].masked_fill(nan, 7), *mask[1:]).nan_to_num(7))


@pytest.mark.parametrize("run", RUNS)
def test_strides_do_not_matter(run):
    """Oracle: entries picked one by one, from transposed, sliced and expanded views with sliced columns."""
    g = torch.Generator().manual_seed(3)
    x, columns = anything((4, 6, 8, 10), torch.float32, g).to(DEVICE), columns_below(3, 4, 10, g)[:, ::2].to(DEVICE)
    views = [
        (x.transpose(1, 3), 1),
        (x[:, ::2, ::2], 1),
        (x[:, :, :6, ::2], 1),
        (x[0].expand(4, -1, -1, -1), 1),
        (x.permute(1, 0, 3, 2), 2),
        (x.permute(1, 2, 0, 3)[..., ::3], 3),
    ]
    for view, dim in views:
        assert not view.is_contiguous() and not columns.is_contiguous()
        (y,) = run([view], [columns], [dim], None)
        assert same_bits(y, picked_rows(view, columns, dim))
    mask = anything((2, 1, 9, 9), torch.bool, g).transpose(2, 3)[:, :, 1:].expand(-1, 3, -1, -1)
    queries, keys = columns_below(8, 2, 5, g), columns_below(9, 2, 8, g)[:, ::2]
    (y,) = run([], [], [], on_device(mask, queries, keys))
    assert same_bits(y, picked_mask(mask, queries, keys))


@pytest.mark.parametrize("run", RUNS)
def test_a_mask_may_be_wider_than_one_block(run):
    """Oracle: number after number."""
    g = torch.Generator().manual_seed(4)
    args = anything((1, 2, 3, 4), torch.bool, g), columns_below(3, 2, 2, g), columns_below(4, 2, 1030, g)
    (y,) = run([], [], [], on_device(*args))
    assert same_bits(y, picked_mask(*args))


def test_kernel_reads_beyond_two_to_the_31():
    """Oracle: two rows written by hand beyond number 2**31. The pages that nobody touches cost no memory."""
    L = 2**31 // 1024 + 4
    x = torch.from_numpy(np.zeros((1, L, 1024), dtype=np.uint8))
    x[0, L - 1], x[0, L - 3] = 7, 9
    (y,) = gather_site_triton([x.to(DEVICE)], [torch.tensor([[L - 1, 0, L - 3]], device=DEVICE)], [1], None)
    assert y[0, :, 0].tolist() == y[0, :, -1].tolist() == [7, 0, 9]


@pytest.mark.parametrize("run", RUNS)
def test_nothing_in_gives_nothing_out(run):
    """Empty tensors beside one that is not: the one still comes out whole."""
    full, none = torch.arange(6.0, device=DEVICE).view(1, 3, 2), torch.zeros(1, 0, dtype=torch.int64, device=DEVICE)
    some = torch.tensor([[2, 0]], device=DEVICE)
    tensors = [full[..., :0], full, full, torch.ones(0, 1, 3, device=DEVICE), full[:, :0]]
    out = run(tensors, [some, some, none, some, none], [1, 1, 1, 2, 1], (torch.ones(1, 0, 3, 3).to(DEVICE), some, none))
    assert [tuple(y.shape) for y in out] == [(1, 2, 0), (1, 2, 2), (1, 0, 2), (0, 1, 2), (1, 0, 2), (1, 0, 2, 0)]
    assert out[1].tolist() == [[[4, 5], [0, 1]]]
    assert run([], [], [], None) == ()


def test_one_columns_and_one_dimension_serve_all_tensors():
    """Oracle: entries picked one by one. A site as the engine has it: hidden states, two tables for all, a mask."""
    g = torch.Generator().manual_seed(5)
    hidden, cos, sin = torch.randn(2, 7, 4, generator=g), torch.randn(1, 7, 6, generator=g), torch.randn(3, 2, 7, 6)
    columns = torch.tensor([[0, 2, 6], [1, 1, 5]])
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    args = on_device(hidden, cos, sin, columns, mask)
    out = gather_site(args[:3], args[3], mask=(args[4], args[3], args[3]))
    expected = [picked_rows(hidden, columns, 1), picked_rows(cos, columns, 1), picked_rows(sin, columns, 2)]
    assert all(same_bits(y, e) for y, e in zip(out, [*expected, picked_mask(mask, columns, columns)], strict=True))
    assert all(y.is_contiguous() for y in out)
    ids = torch.arange(14).view(1, 2, 7).to(DEVICE)
    assert gather_site([ids], args[3], dims=-1)[0].tolist() == [[[0, 2, 6], [8, 8, 12]]]


def test_gradients_flow_through_the_rows():
    """Oracle: finite differences."""
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    columns = torch.tensor([[0, 3, 3], [2, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: gather_site([x, x[:1]], columns), x)


def test_dispatch_asks_for_the_kernel(monkeypatch):
    """Oracle: which of the two was called, and that every tensor was asked about."""
    called, asked = [], []
    monkeypatch.setattr(
        "vtprune_kernels.gather_site_triton.gather_site_triton", lambda *args: called.append(args) or ()
    )
    monkeypatch.setattr(module, "use_triton", lambda *tensors: asked.append(len(tensors)) or True)
    x, columns, mask = torch.ones(2, 3, 4), torch.zeros(2, 1, dtype=torch.int64), torch.ones(1, 1, 3, 3)
    gather_site([x, x], columns, mask=(mask, columns, columns))
    gather_site([x.to(torch.complex128)], columns)
    assert [len(args[0]) for args in called] == [2] and asked == [7, 2]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"tensors": [torch.ones(2, 3, 4)] * 2, "columns": [torch.zeros(2, 1, dtype=torch.int64)]}, ValueError, "2, 1"),
        ({"dims": [1, 1]}, ValueError, "1, 1 and 2"),
        ({"dims": 0}, ValueError, r"dimension 0 of \(2, 3, 4\)"),
        ({"dims": 3}, ValueError, r"dimension 3 of \(2, 3, 4\)"),
        ({"tensors": [torch.ones(3, 3, 4)]}, ValueError, r"\(3, 3, 4\).*\(2, 1\)"),
        ({"columns": torch.zeros(2, 1, dtype=torch.int32)}, TypeError, r"int32.*columns\.long\(\)"),
        ({"columns": torch.tensor([[0], [3]])}, ValueError, r"\[0, 3\).*0\.\.3"),
        ({"mask": (torch.ones(1, 3, 3), *[torch.zeros(2, 1, dtype=torch.int64)] * 2)}, ValueError, r"\(1, 3, 3\)"),
        ({"mask": (torch.ones(3, 1, 3, 3), *[torch.zeros(2, 1, dtype=torch.int64)] * 2)}, ValueError, "2, or 1; got 3"),
        ({"mask": (torch.ones(1, 1, 3, 3), *[torch.full((2, 1), 3)] * 2)}, ValueError, r"queries.*3\.\.3"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    right = {"tensors": [torch.ones(2, 3, 4)], "columns": torch.zeros(2, 1, dtype=torch.int64), "dims": -2}
    gather_site(**right)
    with pytest.raises(error, match=says):
        gather_site(**{**right, **change})


@pytest.mark.gpu
def test_kernel_equals_reference_on_a_gpu_at_real_sizes():
    """Oracle: torch's gather on the same device, by bits, at the widths and lengths of a 7B model."""
    g = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(2, 8192, 3584, generator=g, device="cuda", dtype=torch.bfloat16)
    cos, sin = torch.randn(2, 3, 2, 8192, 128, generator=g, device="cuda", dtype=torch.bfloat16)
    ids = torch.arange(8192, device="cuda").expand(3, 2, -1)
    mask = torch.ones(1, 1, 8192, 8192, device="cuda", dtype=torch.bool).tril()
    order, columns = torch.randint(0, 8192, (2, 2, 2048), generator=g, device="cuda").sort(-1).values
    args = ([hidden, cos, sin, ids], [order, columns, columns, columns], [1, 2, 2, 2], (mask, columns, columns))
    expected = [
        hidden.gather(1, order[..., None].expand(-1, -1, 3584)),
        *(t.gather(2, columns[None, ..., None].expand(3, -1, -1, 128)) for t in (cos, sin)),
        ids.gather(2, columns.expand(3, -1, -1)),
        mask[0, 0][columns[:, :, None], columns[:, None, :]][:, None],
    ]
    for run in RUNS:
        assert all(same_bits(y, e) for y, e in zip(run(*args), expected, strict=True))
