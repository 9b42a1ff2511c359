"""merge_tokens: reference and kernel against weighted means that a Python loop adds up in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune_kernels import merge, merge_tokens

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.merge_triton import merge_tokens_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [merge_tokens, merge_tokens_triton]
# widths below, at and above one block of the kernel, groups of one row and of hundreds
SHAPES = [(1, 1, 1), (3, 17, 2), (40, 33, 1), (300, 65, 3), (17, 1025, 17), (5, 2100, 3)]
# half a unit in the last place of the halves, and one per cent more for the fp32 sums; a few roundings of the others
RELATIVE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1.01 * 2**-11, torch.bfloat16: 1.01 * 2**-8}
# Triton's interpreter cuts float32 to bf16 where compiled kernels round
OF_KERNEL = RELATIVE | ({torch.bfloat16: 1.01 * 2**-7} if DEVICE == "cpu" else {})
ABSOLUTE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


def means(x: Tensor, assignment: Tensor, weight: Tensor | None, n_groups: int) -> Tensor:
    """The oracle: row after row in float64, one accumulator per group."""
    sums, totals = [[0.0] * x.shape[1] for _ in range(n_groups)], [0.0] * n_groups
    for i, (row, group) in enumerate(zip(x.double().tolist(), assignment.tolist(), strict=True)):
        w = 1.0 if weight is None else weight[i].double().item()
        if group >= 0:
            totals[group] += w
            sums[group] = [a + w * b for a, b in zip(sums[group], row, strict=True)]
    rows = [[a / t if t else 0.0 for a in s] for s, t in zip(sums, totals, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).reshape(n_groups, x.shape[1])


def random_case(n: int, d: int, n_groups: int, weighted: bool, dtype: torch.dtype, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g).to(dtype)
    assignment = torch.randint(-1, n_groups, (n,), generator=g)
    weight = torch.rand(n, generator=g) + 0.1 if weighted else None
    return x, assignment, weight, n_groups


def on_device(*case) -> list:
    return [t.to(DEVICE) if isinstance(t, Tensor) else t for t in case]


@settings(max_examples=60)
@given(
    run=st.sampled_from(RUNS),
    n=st.integers(0, 40),
    d=st.integers(0, 9),
    n_groups=st.integers(0, 12),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_each_row_is_the_weighted_mean_of_its_group(run, n, d, n_groups, weighted, dtype, seed):
    """Oracle: a float64 loop. Summed in fp32 at least, so the only large error is the last rounding to x's dtype."""
    if run is merge_tokens_triton and dtype == torch.float64:
        dtype = torch.float32
    case = random_case(n, d, n_groups, weighted, dtype, seed)
    y = run(*on_device(*case))
    assert y.dtype == dtype and y.shape == (n_groups, d)
    rtol = (OF_KERNEL if run is merge_tokens_triton else RELATIVE)[dtype]
    torch.testing.assert_close(y.cpu().double(), means(*case), rtol=rtol, atol=ABSOLUTE[dtype])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_at_most_twice_that_of_torch(run, dtype, shape):
    """Oracle: the float64 loop. Torch's formulation: a product with the matrix of weights, and a division, in dtype."""
    x, assignment, weight, n_groups = random_case(*shape, True, dtype)
    exact = means(x, assignment, weight, n_groups)
    matrix = torch.zeros(n_groups + 1, len(x)).index_put_((assignment, torch.arange(len(x))), weight)[:n_groups]
    total = matrix.sum(1, keepdim=True).to(dtype)
    torchs = torch.where(total > 0, matrix.to(dtype) @ x / total, 0)
    y = run(*on_device(x, assignment, weight, n_groups)).cpu()
    assert (y.double() - exact).abs().max() <= 2 * (torchs.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("run", RUNS)
def test_long_groups_are_not_summed_in_half_precision(run):
    """Oracle: 2048 ones and 2048 threes have the mean 2; a bf16 sum of them sticks at 1024, a bf16 count at 256."""
    x = torch.ones(4096, 1, dtype=torch.bfloat16, device=DEVICE)
    x[2048:] = 3
    assert run(x, torch.zeros(4096, dtype=torch.int64, device=DEVICE), None, 1).item() == 2


@pytest.mark.parametrize("run", RUNS)
def test_a_group_of_one_keeps_its_bits_when_nothing_is_weighted(run):
    """Oracle: the rows themselves, in another order."""
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    order = torch.randperm(17, generator=torch.Generator().manual_seed(2))
    y = run(x.to(DEVICE), order.to(DEVICE), None, 17)
    assert torch.equal(y[order.to(DEVICE)].cpu(), x)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_dropped_row_leaves_no_trace(run, poison):
    """Oracle: the same call with zeros in the dropped rows, by bits; the weight of a dropped row may be anything."""
    x, assignment, weight, n_groups = random_case(30, 6, 5, True, torch.float32)
    dropped = assignment < 0
    x[dropped], weight[dropped] = 0, 1
    expected = run(*on_device(x, assignment, weight, n_groups))
    x[dropped], weight[dropped] = poison, poison
    assert dropped.any() and expected.isfinite().all()
    assert torch.equal(run(*on_device(x, assignment, weight, n_groups)), expected)


@pytest.mark.parametrize("run", RUNS)
def test_a_group_without_weight_is_a_row_of_zeros(run):
    """Also one whose only row holds a NaN."""
    x = torch.ones(3, 2)
    x[0] = float("nan")
    y = run(*on_device(x, torch.tensor([0, 2, 2]), torch.tensor([0.0, 1.0, 3.0]), 4))
    assert y.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]


def test_the_weighted_sum_is_conserved():
    """Algebra: means times the groups' weights add up to the weighted sum of the rows that were not dropped."""
    x, assignment, weight, n_groups = random_case(200, 8, 11, True, torch.float64)
    kept = assignment >= 0
    total = torch.stack([weight[assignment == g].double().sum() for g in range(n_groups)])
    y = merge_tokens(x, assignment, weight, n_groups)
    torch.testing.assert_close((y * total[:, None]).sum(0), (x[kept] * weight[kept, None].double()).sum(0))


@pytest.mark.parametrize("run", RUNS)
def test_strides_do_not_matter(run):
    """Oracle: the float64 loop on a transposed and a sliced tensor with every other weight and assignment."""
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(3))
    assignment, weight = torch.arange(40).remainder(4)[::2], torch.linspace(0.5, 2, 40)[::2]
    for view in (x.T, x.T.contiguous()[:, 1:5], x.T[:, ::2]):
        assert not view.is_contiguous() and not weight.is_contiguous()
        expected = means(view, assignment, weight, 4)
        y = run(*on_device(view, assignment, weight, 4))
        torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_the_same_bits_with_any_number_of_threads():
    """The order of the sums belongs to the result: one, two and three threads, thrice each, by bits."""
    x, assignment, weight, n_groups = random_case(3000, 257, 7, True, torch.float32)
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers += [merge_tokens(x, assignment, weight, n_groups) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_gradients_flow_to_the_rows():
    """Oracle: finite differences. The kernel has no backward pass, so the reference runs wherever one is wanted."""
    x, assignment, weight, n_groups = random_case(7, 3, 4, True, torch.float64)
    assert torch.autograd.gradcheck(lambda rows: merge_tokens(rows, assignment, weight, n_groups), x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dispatch_asks_for_the_kernel_but_not_in_double_precision(monkeypatch, dtype):
    """Oracle: whether the kernel was called, and with what. It sums in float32."""
    case = random_case(7, 3, 4, True, dtype)
    called = []
    monkeypatch.setattr("vtprune_kernels.merge_triton.merge_tokens_triton", lambda *args: called.append(args))
    monkeypatch.setattr(merge, "use_triton", lambda *tensors: len(tensors) == 3)
    merge_tokens(*case)
    assert called == ([case] if dtype == torch.bfloat16 else [])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": torch.ones(4)}, ValueError, r"\(N, D\).*got \(4,\)"),
        ({"assignment": torch.zeros(5, dtype=torch.int64)}, ValueError, r"\(5,\)"),
        ({"weight": torch.ones(3)}, ValueError, r"\(3,\)"),
        ({"x": torch.ones(4, 2, dtype=torch.int64)}, TypeError, r"int64.*x\.float\(\)"),
        ({"assignment": torch.zeros(4)}, TypeError, r"float32.*assignment\.long\(\)"),
        ({"assignment": torch.tensor([0, 3, 1, -1])}, ValueError, r"\[-1, 3\).*-1\.\.3"),
        ({"assignment": torch.tensor([0, -2, 1, 1])}, ValueError, r"-2\.\.1"),
        ({"n_groups": -1}, ValueError, "got -1"),
        ({"weight": torch.ones(4, device="meta")}, ValueError, "one device"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    right = {"x": torch.ones(4, 2), "assignment": torch.tensor([0, 1, 2, -1]), "weight": torch.ones(4), "n_groups": 3}
    merge_tokens(**right)
    with pytest.raises(error, match=says):
        merge_tokens(**{**right, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_in_every_run_on_a_gpu_at_real_sizes(dtype):
    """Oracle: the first of ten runs by bits; and float64 sums on the device, to within twice what torch errs."""
    g = torch.Generator(device="cuda").manual_seed(0)
    n, d, n_groups = 8192, 3584, 2048
    x = torch.randn(n, d, generator=g, device="cuda").to(dtype)
    assignment = torch.randint(-1, n_groups, (n,), generator=g, device="cuda")
    # one group that is much longer than the others
    assignment[5000:7000] = 7
    weight = torch.rand(n, generator=g, device="cuda") + 0.1
    answers = [merge_tokens_triton(x, assignment, weight, n_groups) for _ in range(10)]
    assert all(torch.equal(answers[0], answer) for answer in answers)
    group, wide = torch.where(assignment < 0, n_groups, assignment), weight.double()
    sums = x.new_zeros(n_groups + 1, d, dtype=torch.float64).index_add_(0, group, x.double() * wide[:, None])
    total = wide.new_zeros(n_groups + 1).index_add_(0, group, wide)
    exact = torch.where(total > 0, 1 / total, 0)[:n_groups, None] * sums[:n_groups]
    error = (merge.merge_tokens_reference(x, assignment, weight, n_groups).double() - exact).abs().max()
    assert (answers[0].double() - exact).abs().max() <= 2 * error + 1e-6
