"""PyramidDrop, against the released code's results from embeddings to hidden states, and eager attention."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from tests.policies.golden_llava import run
from vtprune.policies.pyramiddrop import PyramidDrop
from vtprune.tokens import ModelFacts, Segment, VisualTokens


def test_released_choices_caches_and_hidden_states_are_met(golden):
    """Oracle: the authors' code in its own model; its layers are counted from 1, which is the layer behind the cut."""
    paths = sorted(golden("pyramiddrop").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        policy = PyramidDrop(keep_ratios=tuple(case["ratios"].tolist()), layers=tuple(case["layers"].tolist()), of=None)
        kept, lengths, hidden = run(case, policy)
        for stage, rows in enumerate(kept):
            assert rows.tolist() == case[f"keep_stage{stage}"].tolist(), (path.name, stage)
        assert lengths == case["kv_lengths"].tolist()
        torch.testing.assert_close(hidden, case["final_hidden"], atol=1e-4, rtol=1e-4)


def seen(score, site=8, count=None, sizes=None, policy=None):
    """What a policy keeps of tokens with these scores, of which there were ``count`` before the first stage."""
    n = len(score)
    stops = torch.tensor(sizes or [n]).cumsum(0).tolist()
    spans = [slice(stop - size, stop) for stop, size in zip(stops, sizes or [n])]
    tokens = VisualTokens(
        torch.zeros(n, 2),
        torch.zeros(1, 2),
        tuple(Segment(span, source=i) for i, span in enumerate(spans)),
        {"last_query_attention:peek": torch.tensor(score)},
        site=site,
        memory={"stages": {0: count}} if count else {},
    )
    return (policy or PyramidDrop()).select(tokens).keep.tolist()


def test_worked_example():
    """Means over two heads (.2, .2, .15, .1); half of four, then an eighth of 8, of which four are left."""
    assert seen([0.2, 0.2, 0.15, 0.1]) == [0, 1]
    assert seen([0.1, 0.2, 0.15, 0.1], site=24, count=8) == [1]


@pytest.mark.parametrize(("n", "counts"), [(576, [288, 144, 72]), (37, [18, 9, 4]), (1, [1, 1, 1]), (3, [1, 1, 1])])
def test_counts_are_cut_off_from_the_original_count(n, counts):
    alive, found = n, []
    for site in (8, 16, 24):
        alive = len(seen([0.0] * alive, site, n))
        found.append(alive)
    assert found == counts


def test_ties_go_to_the_lowest_and_images_have_a_budget_each():
    assert seen([0.5] * 6) == [0, 1, 2]
    score = [0.0, 0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6]
    assert seen(score, sizes=[4, 4]) == [2, 3, 4, 5]
    assert seen(score, policy=PyramidDrop(budget="prompt"), sizes=[4, 4]) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (8, 16, 24)), (40, (10, 20, 30)), (28, (7, 14, 21)), (4, (1, 2, 3)), (2, (1,))]
)
def test_stages_are_fractions_of_depth(depth, layers):
    fitted = PyramidDrop().fitted(ModelFacts("llava", depth, 8, True, True))
    assert fitted.sites == layers and fitted.fitted(ModelFacts("llava", depth, 8, True, True)) == fitted


def test_of_stages_that_fall_together_the_last_holds():
    fitted = PyramidDrop().fitted(ModelFacts("llava", 2, 8, True, True))
    assert len(seen([0.0] * 80, 1, policy=fitted)) == 10


def test_one_keep_ratio_takes_all_stages_along():
    """Oracle: the powers, by hand: 1/64 is the square of 1/8, so 4096 tokens become 1024, 256 and 64."""
    assert [len(seen([0.0] * 4096, site, policy=PyramidDrop(1 / 64))) for site in (8, 16, 24)] == [1024, 256, 64]
    assert len(seen([0.0] * 100, 24, policy=PyramidDrop(0.29))) == 28  # 100 * 0.29 is less than 29 in binary


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])
def test_the_first_stage_is_what_eager_attention_says(family):
    """Oracle: attention maps of the unpruned model (grouped heads), newlines and all."""
    model, inputs = tiny.build(family, dtype=torch.float32), tiny.batch(family, "padded", torch.float32)
    with vtprune.pruned(model, "pyramiddrop", keep_ratio=0.2) as report:
        model(**inputs, **oracle.positions(inputs))
        site, found = report.sites[0].site, report.sites[0].kept
        rows = report.last.layout.rows
    model.set_attn_implementation("eager")
    maps = model(**inputs, **oracle.positions(inputs), output_attentions=True, use_cache=False).attentions
    assert site == 1
    for b, row in enumerate(rows):
        score = maps[site][b, :, -1].double().mean(0)[row.columns]
        k = int(len(row.columns) * 0.2 ** (1 / 3))
        assert found[b].tolist() == sorted(score.sort(descending=True).indices[:k].tolist())


def test_generated_tokens_are_those_of_masked_columns():
    """Oracle: every token of the prompt stays and its column is hidden from the layer on where it was dropped."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, "pyramiddrop", keep_ratio=0.25, positions="original") as report:
        out = tiny.greedy(model, inputs, 4)
        layout, kept = report.last.layout, {}
        for record in report.sites:
            alive = ~tiny.visual(inputs)
            for b, row in enumerate(layout.rows):
                alive[b, row.columns[record.kept[b]]] = True
            kept[int(record.site)] = alive
    assert [int(alive.sum()) for alive in kept.values()] == sorted((int(a.sum()) for a in kept.values()), reverse=True)
    with oracle.MaskedColumns(model, kept):
        expected = tiny.greedy(model, inputs, 4)
    assert torch.equal(out.sequences, expected.sequences)
    for got, want in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": (9, 7, 12)}, r"layers .*\(9, 7, 12\)"),
        ({"layers": (0, 9, 12)}, r"1 or more; got \(0, 9, 12\)"),
        ({"layers": "789"}, "layers .*'789'"),
        ({"keep_ratios": (0.5,)}, r"one entry for each of layers=\(8, 16, 24\); got \(0.5,\)"),
        ({"keep_ratios": (0.5, 0.6, 0.1)}, r"fall; got \(0.5, 0.6, 0.1\)"),
        ({"keep_ratios": (0.5, 0.25, 0)}, r"in \(0, 1\]; got \(0.5, 0.25, 0\)"),
        ({"keep_ratios": (1, 1, 1), "keep_ratio": 0.5}, "keep_ratio=0.5 cannot be reached"),
        ({"of": 24}, "of is the depth .*got 24"),
        ({"budget": "video"}, "budget is one of .*'video'"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        PyramidDrop(**options)


def test_layers_that_a_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 16, 24\) do not all lie in this decoder, which has layers 0 to 3"):
        vtprune.wrap(tiny.build("llava"), "pyramiddrop", of=None)
