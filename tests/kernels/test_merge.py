"""merge_tokens: against weighted means that a Python loop adds up in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune_kernels import merge_tokens
from vtprune_kernels.merge import _segment_sum

# half a unit in the last place of the halves, and one per cent more for the fp32 sums; a few roundings of the others
RELATIVE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1.01 * 2**-11, torch.bfloat16: 1.01 * 2**-8}
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


@settings(max_examples=60)
@given(
    n=st.integers(0, 40),
    d=st.integers(0, 9),
    n_groups=st.integers(0, 12),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_each_row_is_the_weighted_mean_of_its_group(n, d, n_groups, weighted, dtype, seed):
    """Oracle: a float64 loop. Summed in fp32 at least, so the only large error is the last rounding to x's dtype."""
    x, assignment, weight, n_groups = random_case(n, d, n_groups, weighted, dtype, seed)
    y = merge_tokens(x, assignment, weight, n_groups)
    assert y.dtype == dtype and y.shape == (n_groups, d)
    expected = means(x, assignment, weight, n_groups)
    torch.testing.assert_close(y.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype])


def test_long_groups_are_not_summed_in_half_precision():
    """Oracle: 2048 ones and 2048 threes have the mean 2; a bf16 sum of them sticks at 1024, a bf16 count at 256."""
    x = torch.ones(4096, 1, dtype=torch.bfloat16)
    x[2048:] = 3
    assert merge_tokens(x, torch.zeros(4096, dtype=torch.int64), None, 1).item() == 2


def test_a_group_of_one_keeps_its_bits_when_nothing_is_weighted():
    """Oracle: the rows themselves, in another order."""
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    order = torch.randperm(17, generator=torch.Generator().manual_seed(2))
    y = merge_tokens(x, order, None, 17)
    assert torch.equal(y[order], x)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_dropped_row_leaves_no_trace(poison):
    """Oracle: the same call without the dropped rows, by bits; the weight of a dropped row may be anything too."""
    x, assignment, weight, n_groups = random_case(30, 6, 5, True, torch.float32)
    kept = assignment >= 0
    expected = merge_tokens(x[kept], assignment[kept], weight[kept], n_groups)
    x[~kept], weight[~kept] = poison, poison
    assert (~kept).any() and torch.equal(merge_tokens(x, assignment, weight, n_groups), expected)


def test_a_group_without_weight_is_a_row_of_zeros():
    x = torch.ones(3, 2)
    y = merge_tokens(x, torch.tensor([0, 2, 2]), torch.tensor([0.0, 1.0, 3.0]), 4)
    assert y.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]


def test_the_weighted_sum_is_conserved():
    """Algebra: means times the groups' weights add up to the weighted sum of the rows that were not dropped."""
    x, assignment, weight, n_groups = random_case(200, 8, 11, True, torch.float64)
    kept = assignment >= 0
    total = torch.stack([weight[assignment == g].double().sum() for g in range(n_groups)])
    y = merge_tokens(x, assignment, weight, n_groups)
    torch.testing.assert_close((y * total[:, None]).sum(0), (x[kept] * weight[kept, None].double()).sum(0))


def test_strides_do_not_matter():
    """Oracle: the float64 loop on a transposed tensor with every other weight and assignment."""
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(3)).T
    assignment, weight = torch.arange(40).remainder(4)[::2], torch.linspace(0.5, 2, 40)[::2]
    assert not x.is_contiguous() and not weight.is_contiguous()
    torch.testing.assert_close(
        merge_tokens(x, assignment, weight, 4).double(), means(x, assignment, weight, 4), rtol=1e-5, atol=1e-6
    )


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


def test_the_sum_used_on_a_gpu_adds_the_same_rows():
    """Oracle: the sum used on a CPU. ``is_cuda`` selects the other, so a tensor that claims to be there runs it."""

    class ClaimsCuda(Tensor):
        is_cuda = True

    x, assignment, _, n_groups = random_case(50, 4, 6, False, torch.float64)
    group = assignment.clamp(min=0)
    there = _segment_sum(x.as_subclass(ClaimsCuda), group, n_groups).as_subclass(Tensor)
    torch.testing.assert_close(there, _segment_sum(x, group, n_groups))


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
def test_the_same_bits_in_every_run_on_a_gpu():
    """Oracle: the first of ten runs by bits, and the CPU's answer to within fp32 rounding."""
    x, assignment, weight, n_groups = random_case(5000, 512, 9, True, torch.float32)
    answers = [merge_tokens(x.cuda(), assignment.cuda(), weight.cuda(), n_groups) for _ in range(10)]
    assert all(torch.equal(answers[0], answer) for answer in answers)
    torch.testing.assert_close(answers[0].cpu(), merge_tokens(x, assignment, weight, n_groups))
