"""V2Drop, against the released code's results from embeddings to hidden states, and watched layers."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from tests.policies.golden_llava import run
from vtprune.policies.v2drop import V2Drop
from vtprune.tokens import ModelFacts, Segment, VisualTokens


def test_released_choices_caches_and_hidden_states_are_met(golden):
    """Oracle: the authors' code in its own model."""
    paths = sorted(golden("v2drop").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        layers = tuple(case["layers"].tolist())
        kept, lengths, hidden = run(case, V2Drop(keep_ratios=tuple(case["ratios"].tolist()), layers=layers))
        watched = sorted({*layers, *(layer - 1 for layer in layers)})
        stages = [rows for rows, site in zip(kept, watched, strict=True) if site in layers]
        for stage, rows in enumerate(stages):
            assert rows.tolist() == case[f"keep_stage{stage}"].tolist(), (path.name, stage)
        assert lengths == case["kv_lengths"].tolist()
        torch.testing.assert_close(hidden[:, -1], case["final_hidden_last"], atol=1e-4, rtol=1e-4)


def through(policy, states, sizes=None, dtype=torch.float32):
    """The original rows that are left after each stage. states: one (N, D) for each site, of all tokens."""
    rows, memory, left = torch.arange(len(states[0])), {}, []
    source = torch.arange(len(sizes or [0])).repeat_interleave(torch.tensor(sizes or [len(rows)]))
    for site, state in zip(policy.sites, states, strict=True):
        counts = torch.bincount(source[rows], minlength=len(sizes or [0]))
        stops = counts.cumsum(0).tolist()
        segments = tuple(Segment(slice(stop - n, stop), source=i) for i, (n, stop) in enumerate(zip(counts, stops)))
        tokens = VisualTokens(
            torch.as_tensor(state)[rows].to(dtype), torch.zeros(1, 2), segments, site=site, memory=memory
        )
        rows = rows[policy.select(tokens).keep]
        left.append(rows.tolist())
    return left


def test_worked_example():
    """Changes (5, 1, 0), and int(3 * 0.5) is 1."""
    policy = V2Drop(keep_ratios=(0.5,), layers=(4,))
    assert policy.sites == (3, 4)
    states = [[[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]], [[3.0, 4.0], [1.0, 2.0], [2.0, 0.0]]]
    assert through(policy, states) == [[0, 1, 2], [0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_stages_one_after_another_measure_the_layer_between(dtype):
    """Layers 1, 2 and 3: what is left of a stage is what the next one compares with. Ties go to the lowest."""
    steps = torch.tensor([[[4.0], [3.0], [2.0], [1.0]], [[0.0], [1.0], [9.0], [9.0]], [[9.0], [5.0], [5.0], [0.0]]])
    states = torch.cat([torch.full((1, 4, 1), 100.0), 100 + steps.cumsum(0)])
    policy = V2Drop(keep_ratios=(0.75, 0.67, 0.5), layers=(1, 2, 3))
    assert policy.sites == (0, 1, 2, 3)
    assert through(policy, states, dtype=dtype) == [[0, 1, 2, 3], [0, 1, 2], [1, 2], [1]]


def test_changes_that_tie_in_bfloat16_are_told_apart():
    """Lengths 3 and 3.0026 are one number in bfloat16."""
    states = [torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [3.0, 0.125]])]
    assert through(V2Drop(keep_ratios=(0.5,), layers=(1,)), states, dtype=torch.bfloat16)[-1] == [1]


@pytest.mark.parametrize(("n", "counts"), [(576, [288, 144, 1]), (5, [2, 1, 1]), (1, [1, 1, 1])])
def test_published_counts_are_cut_off_from_the_current_count(n, counts):
    left = through(V2Drop(), torch.randn(6, n, 3, generator=torch.Generator().manual_seed(n)))
    assert [len(rows) for rows in left[1::2]] == counts


def test_images_have_a_budget_each():
    states = [torch.zeros(8, 1), torch.arange(8.0)[:, None]]
    policy = V2Drop(keep_ratios=(0.5,), layers=(1,))
    assert through(policy, states, [4, 4])[-1] == [2, 3, 6, 7]
    assert through(V2Drop(keep_ratios=(0.5,), layers=(1,), budget="prompt"), states, [4, 4])[-1] == [4, 5, 6, 7]


def test_it_fits_itself_to_the_model():
    def fitted(model_type, depth):
        policy = V2Drop().fitted(ModelFacts(model_type, depth, 8, False, True))
        assert policy.fitted(ModelFacts(model_type, depth, 8, False, True)) == policy
        return policy.layers, policy.keep_ratios

    assert fitted("llava", 32) == ((3, 17, 22), (0.5, 0.5, 0.0))
    assert fitted("llava", 40) == ((4, 21, 28), (0.5, 0.5, 0.0))
    assert fitted("qwen2_vl", 28) == fitted("qwen2_5_vl", 28) == ((3, 16, 22), (0.25, 0.05, 0.0))
    assert fitted("llava", 4) == ((1, 2, 3), (0.5, 0.5, 0.0))
    assert fitted("llava", 2) == ((1, 1, 1), (0.5, 0.5, 0.0))


def test_stages_that_fall_together_follow_each_other():
    policy = V2Drop(keep_ratios=(0.5, 0.5), layers=(1, 1))
    assert len(through(policy, [torch.zeros(11, 1)] * 2)[-1]) == 2  # 11, 5, 2


@pytest.mark.parametrize("keep_ratio", [0.11, 0.2, 0.35, 0.5, 0.75, 0.99])
def test_keep_ratio_is_the_mean_over_the_layers(keep_ratio):
    """Oracle: the tokens of each of 32 layers, counted; each stage rounds down less than one token, or up to one."""
    n, left, seen = 1000, through(V2Drop(keep_ratio), torch.rand(6, 1000, 2)), []
    counts = dict(zip(V2Drop().sites, map(len, left), strict=True))
    for layer in range(32):
        n = counts.get(layer, n)
        seen.append(n)
    assert seen == sorted(seen, reverse=True)
    assert abs(sum(seen) / 32 - 1000 * keep_ratio) < 1


def test_a_mean_that_cannot_be_had_leaves_one_token_and_says_so():
    """The first 3 of 32 layers alone see 3/32 = 0.094 of the tokens on average."""
    memory, state, notes = {}, torch.rand(50, 2), []
    for site in V2Drop().sites:
        tokens = VisualTokens(state, state[:1], (Segment(slice(0, len(state))),), site=site, memory=memory)
        selection = V2Drop(0.05).select(tokens)
        state = state[selection.keep]
        notes.append(selection.note)
    assert len(state) == 1 and "3 of 32" in notes[1] and "keep_ratio=0.05" in notes[1]
    assert not any(notes[i] for i in (0, 2, 3, 4, 5))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_every_stage_is_what_watched_layers_say(family):
    """Oracle: the inputs of layers 1 and 2 of the unpruned model, of every sample of a ragged batch."""
    model, inputs = tiny.build(family), tiny.batch(family, "ragged")
    seen = model(**inputs, **oracle.positions(inputs), output_hidden_states=True).hidden_states
    with vtprune.pruned(model, V2Drop(keep_ratios=(0.4,), layers=(2,))) as report:
        model(**inputs, **oracle.positions(inputs))
        kept, layout = report.sites[-1].kept, report.last.layout
    for b, row in enumerate(layout.rows):
        change = (seen[2] - seen[1])[b].norm(dim=-1)
        expected = []
        for source in range(len(row.sources)):
            mine = ((row.source == source) & row.patch).nonzero().flatten()
            best = change[row.columns[mine]].sort(descending=True).indices[: int(0.4 * len(mine))]
            expected += sorted(mine[best].tolist())
        offered = row.patch.nonzero().flatten()
        assert offered[kept[b]].tolist() == expected


def test_it_generates_and_reports_what_it_kept():
    """Oracle: full lengths of the layers by hand; 16 tokens: 8, 4 and 1 on LLaVA's schedule in four layers."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
    expected = tiny.greedy(model, inputs, 3).sequences
    with vtprune.pruned(model, "v2drop") as report:
        out = tiny.greedy(model, inputs, 3)
        text = inputs["input_ids"].shape[1] - 16 + 2
        assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [text + n for n in (16, 8, 4, 1)]
        assert report.tokens == [(16, 1)] and report.layer_mean() == 29 / 4
    with vtprune.pruned(model, "v2drop", keep_ratio=1.0):
        assert torch.equal(tiny.greedy(model, inputs, 3).sequences, expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": (3,)}, r"together.*layers=\(3,\)"),
        ({"keep_ratios": (0.5,)}, r"together.*keep_ratios=\(0.5,\)"),
        ({"of": 32}, "together.*of=32"),
        ({"layers": (0,), "keep_ratios": (0.5,)}, r"1 or more; got \(0,\)"),
        ({"layers": (3, 4), "keep_ratios": (0.5,)}, r"one for each of layers=\(3, 4\); got \(0.5,\)"),
        ({"layers": (3,), "keep_ratios": (1.5,)}, r"in \[0, 1\].*got \(1.5,\)"),
        ({"layers": (3,), "keep_ratios": (float("nan"),)}, r"in \[0, 1\].*nan"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        V2Drop(**options)
