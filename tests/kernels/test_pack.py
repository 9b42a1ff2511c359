"""pack and unpack: reference and kernels against rows moved one by one in Python, by bits."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune_kernels.pack import pack, pack_reference, unpack, unpack_reference

triton = pytest.importorskip("triton", reason="the kernels need triton (extra: kernels)")

from vtprune_kernels.pack_triton import pack_triton, unpack_triton  # noqa: E402

module = importlib.import_module("vtprune_kernels.pack")  # the package has the function of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKS, UNPACKS = [pack_reference, pack_triton], [unpack_reference, unpack_triton]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def anything(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Every bit pattern is likely, NaN and infinities included."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    words = WORDS[dtype.itemsize]
    return torch.randint(torch.iinfo(words).min, torch.iinfo(words).max, shape, generator=g, dtype=words).view(dtype)


def same_bits(x: Tensor, y: Tensor) -> bool:
    words = WORDS[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.cpu().contiguous().view(words), y.cpu().contiguous().view(words))


def moved(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The oracle: what pack returns, row after row; and x with zeros where it is padding, which unpack gives back."""
    rows, restored, ends = [], torch.zeros_like(x), [0]
    for b, flags in enumerate(valid.tolist()):
        for j, flag in enumerate(flags):
            if flag:
                rows.append(x[b, j])
                restored[b, j] = x[b, j]
        ends.append(len(rows))
    return torch.stack(rows) if rows else x.new_zeros(0, *x.shape[2:]), restored, ends


def padded(counts: list[int], length: int, side: str) -> Tensor:
    """The oracle for one-sided padding, written out."""
    rows = [[side == "right"] * n + [side == "left"] * (length - n) for n in counts]
    if side == "left":
        rows = [[False] * (length - n) + [True] * n for n in counts]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(counts), length)


@pytest.mark.parametrize(("do_pack", "do_unpack"), list(zip(PACKS, UNPACKS, strict=True)))
@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 9), max_size=4),
    spare=st.integers(0, 3),
    inner=st.sampled_from([(), (1,), (3,), (33,), (2, 17), (1025,), (0,)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    where=st.sampled_from(["left", "right", "anywhere"]),
    seed=st.integers(0, 2**16),
)
def test_rows_are_moved_bit_for_bit_and_back(do_pack, do_unpack, counts, spare, inner, dtype, where, seed):
    """Oracle: row after row. Padding on either side and in between, empty samples, empty batches, empty rows."""
    g, length = torch.Generator().manual_seed(seed), max(counts, default=0) + spare
    valid = padded(counts, length, "left" if where == "anywhere" else where)
    if where == "anywhere":
        valid = valid[:, torch.randperm(length, generator=g)]
    x = anything((len(counts), length, *inner), dtype, g)
    expected, restored, ends = moved(x, valid)
    packed = do_pack(x.to(DEVICE), valid.to(DEVICE), sum(counts))
    assert packed.shape == expected.shape and packed.is_contiguous() and same_bits(packed, expected)
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    back = [do_unpack(packed, cu_seqlens, length, valid.to(DEVICE), "left")]
    if where != "anywhere":
        back.append(do_unpack(packed, cu_seqlens, length, None, where))
    assert all(y.shape == restored.shape and same_bits(y, restored) for y in back)


@pytest.mark.parametrize("do_pack", PACKS)
def test_strides_do_not_matter(do_pack):
    """Oracle: row after row, from transposed, sliced and expanded tensors and transposed flags."""
    g = torch.Generator().manual_seed(1)
    x = anything((3, 6, 4, 8), torch.float32, g)
    for view in (x.transpose(1, 2), x[:, ::2], x[..., ::2], x[:1].expand(3, -1, -1, -1), x[:, :, 0], x.transpose(0, 1)):
        valid = (torch.rand(view.shape[1], view.shape[0], generator=g) < 0.6).T
        assert not view.is_contiguous() and not valid.is_contiguous()
        expected, _, _ = moved(view, valid)
        assert same_bits(do_pack(view.to(DEVICE), valid.to(DEVICE), len(expected)), expected)


def test_the_names_and_types_are_those_of_flash_attention():
    """Oracle: a batch by hand. Offsets are int32 on the device, the longest sample is a Python int."""
    x = torch.arange(12.0, device=DEVICE).view(3, 4)
    valid = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]], device=DEVICE).bool()
    for counts in (None, [2, 0, 3]):
        packed, cu_seqlens, max_seqlen = pack(x, valid, counts=counts)
        assert packed.tolist() == [2, 3, 8, 10, 11] and cu_seqlens.tolist() == [0, 2, 2, 5]
        assert (cu_seqlens.dtype, cu_seqlens.device, max_seqlen) == (torch.int32, x.device, 3)
        assert type(max_seqlen) is int
    assert unpack(packed, cu_seqlens, valid=valid).tolist() == [[0, 0, 2, 3], [0, 0, 0, 0], [8, 0, 10, 11]]
    assert unpack(packed, cu_seqlens, length=4).tolist() == [[0, 0, 2, 3], [0, 0, 0, 0], [0, 8, 10, 11]]
    assert unpack(packed, cu_seqlens, length=3, side="right").tolist() == [[2, 3, 0], [0, 0, 0], [8, 10, 11]]


def test_counts_known_on_the_host_need_no_value_of_the_device():
    """Oracle: a meta tensor has no values to wait for, so whoever asks for one fails."""
    x, valid = torch.ones(2, 5, 3, device="meta"), torch.ones(2, 5, device="meta", dtype=torch.bool)
    packed, cu_seqlens, max_seqlen = pack(x, valid, counts=[5, 2])
    assert (packed.shape, cu_seqlens.shape, max_seqlen) == ((7, 3), (3,), 5)
    assert unpack(packed, cu_seqlens, length=6).shape == (2, 6, 3)
    assert unpack(packed, cu_seqlens, valid=valid).shape == (2, 5, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        pack(x, valid)


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_the_places_found_without_waiting_are_those_of_nonzero(share):
    """Oracle: torch's nonzero, which waits for the device because its shape depends on values."""
    valid = torch.rand(3, 17, generator=torch.Generator().manual_seed(2)) < share
    places = module._counted_places(valid, int(valid.sum()))
    assert torch.equal(places, valid.flatten().nonzero().flatten())


def test_gradients_flow_through_the_rows():
    """Oracle: finite differences."""
    valid = torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpack(*pack(x, valid)[:2], length=4), x)


def test_dispatch_asks_for_the_kernels(monkeypatch):
    """Oracle: what was called; 16-byte numbers are left to torch."""
    called = []
    answer = torch.ones(3)
    kernels = SimpleNamespace(
        pack_triton=lambda *args: called.append("pack") or answer, unpack_triton=lambda *args: called.append("unpack")
    )
    monkeypatch.setitem(sys.modules, "vtprune_kernels.pack_triton", kernels)
    monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    x, valid = torch.ones(2, 2), torch.tensor([[True, True], [False, True]])
    packed, cu_seqlens, _ = pack(x, valid)
    assert packed is answer and unpack(packed, cu_seqlens, length=2) is None and called == ["pack", "unpack"]
    pack(x.to(torch.complex128), valid)
    assert len(called) == 2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": torch.ones(3)}, ValueError, r"\(B, L, \.\.\.\).*got \(3,\)"),
        ({"x": torch.ones(2, 4, 1)}, ValueError, r"\(2, 4, 1\) and \(2, 3\)"),
        ({"valid": torch.ones(2, 3)}, TypeError, r"float32.*valid\.bool\(\)"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool, device="meta")}, ValueError, "cpu and meta"),
        ({"counts": [3, 2]}, ValueError, r"\[3, 3\]; got \[3, 2\]"),
    ],
)
def test_a_wrong_pack_says_what_is_wrong(change, error, says):
    right = {"x": torch.ones(2, 3, 4), "valid": torch.ones(2, 3, dtype=torch.bool), "counts": [3, 3]}
    pack(**right)
    with pytest.raises(error, match=says):
        pack(**{**right, **change})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"packed": torch.ones(())}, ValueError, r"got \(\) and \(3,\)"),
        ({"cu_seqlens": torch.tensor([0, 2, 5])}, TypeError, r"int64.*cu_seqlens\.int\(\)"),
        ({"cu_seqlens": torch.tensor([0, 2, 4], dtype=torch.int32)}, ValueError, r"0 to the 5 rows.*\[0, 2, 4\]"),
        ({"cu_seqlens": torch.tensor([0, 6, 5], dtype=torch.int32)}, ValueError, r"\[0, 6, 5\]"),
        ({"length": 2}, ValueError, "longest sample's, 3; got 2"),
        ({"length": None}, ValueError, "give one"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "give one"),
        ({"length": None, "valid": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"\[3, 3\].*\[2, 3\]"),
        ({"length": None, "valid": torch.ones(3, 3, dtype=torch.bool)}, ValueError, r"2 samples.*\(3, 3\)"),
        ({"side": "top"}, ValueError, "'left' or 'right'; got 'top'"),
    ],
)
def test_a_wrong_unpack_says_what_is_wrong(change, error, says):
    right = {"packed": torch.ones(5, 4), "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32), "length": 3}
    unpack(**right)
    with pytest.raises(error, match=says):
        unpack(**{**right, **change})


@pytest.mark.gpu
def test_kernels_equal_references_on_a_gpu_at_real_sizes():
    """Oracle: torch's indexing with flags on the same device, by bits, at the widths and lengths of a 7B model."""
    g = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(4, 4096, 3584, generator=g, device="cuda", dtype=torch.bfloat16)
    n = [4096, 1000, 0, 2049]
    valid = padded(n, 4096, "left").cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed, cu_seqlens, max_seqlen = pack(x, valid, counts=n)
        back = unpack(packed, cu_seqlens, length=4096), unpack(packed, cu_seqlens, valid=valid)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert max_seqlen == 4096 and cu_seqlens.tolist() == [0, 4096, 5096, 5096, 7145]
    assert same_bits(packed, x[valid]) and same_bits(pack_reference(x, valid, sum(n)), packed)
    assert all(same_bits(y, torch.where(valid[..., None], x, 0)) for y in back)


@pytest.mark.gpu
def test_kernels_reach_beyond_two_to_the_31_on_a_gpu():
    """Oracle: two rows written by hand beyond number 2**31."""
    L = 2**21 + 4
    x, valid = torch.zeros(1, L, 1024, dtype=torch.uint8, device="cuda"), torch.zeros(1, L, dtype=torch.bool).cuda()
    x[0, L - 1], x[0, L - 3] = 7, 9
    valid[0, L - 3], valid[0, L - 1] = True, True
    packed, cu_seqlens, _ = pack(x, valid)
    assert packed[:, 0].tolist() == packed[:, -1].tolist() == [9, 7]
    assert torch.equal(unpack(packed, cu_seqlens, valid=valid), x)
