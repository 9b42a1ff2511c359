"""Frame and view budgets over token policies. Oracle: every frame or crop alone, as a sample made by hand."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample
from vtprune import BEFORE_LLM, POLICIES, Allotted, Segment, Selection, Then, VisualTokens
from vtprune.apply import merge_rows
from vtprune.at_flops import AtFlops
from vtprune.blocks.share import side_by_side

DivPrune, FastV, HiRED, QuoTA, ToMe, VidCom2 = (
    POLICIES[name] for name in ("divprune", "fastv", "hired", "quota", "tome", "vidcom2")
)


def alone(tokens: VisualTokens, rows: torch.Tensor, height: int, width: int, **signals) -> VisualTokens:
    """Rows of a sample as an image of its own, put together by hand."""
    places = [[0, 0, y, x] for y in range(height) for x in range(width)]
    return VisualTokens(
        hidden=tokens.hidden[rows],
        text=tokens.text,
        segments=(Segment(slice(0, len(rows)), ((1, height, width),)),),
        signals=signals,
        site=tokens.site,
        rows=rows,
        coords=torch.tensor(places),
        position=tokens.position[rows],
        text_position=tokens.text_position,
    )


def test_a_frame_budget_over_policies_that_drop_and_that_merge():
    """Frames of 36 tokens. The counts are int(48 * w), w by the squares of the scores 1, 2, 3 and 0."""
    scores, counts = [1.0, 2.0, 3.0, 0.0], [3, 13, 30, 0]
    tokens = Sample("video").at()
    for chooser in (DivPrune, ToMe, POLICIES["uniform"], POLICIES["pool"]):
        both = Allotted(QuoTA(n_keep=48, frame_scores=scores), chooser())
        selection = both.select(tokens)
        kept, made = [], []
        for t, k in enumerate(counts):
            rows = torch.arange(36 * t, 36 * (t + 1))
            if k:
                one = alone(tokens, rows, 6, 6)
                answer = chooser(n_keep=k).select(one)
                kept.append(rows[answer.keep])
                made.append(merge_rows(one.hidden, answer))
        assert selection.keep.tolist() == torch.cat(kept).tolist()
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), torch.cat(made))


def test_signals_are_those_of_the_frame():
    """Oracle: the best of each frame by the attention that the sample was given."""
    tokens = Sample("video").at(2, FastV().needs)
    selection = Allotted(QuoTA(n_keep=48, frame_scores=[1.0, 2.0, 3.0, 0.0]), FastV()).select(tokens)
    attention = tokens.signals["last_query_attention"].split(36)
    best = [36 * t + attention[t].topk(k).indices.sort().values for t, k in enumerate((3, 13, 30))]
    assert selection.keep.tolist() == torch.cat(best).tolist()
    dart = POLICIES["dart"]
    tokens = Sample("video").at(2, dart().needs)
    selection, kept = Allotted(QuoTA(n_keep=48, frame_scores=[1.0, 2.0, 3.0, 0.0]), dart()).select(tokens), []
    for t, k in enumerate((3, 13, 30)):
        rows = torch.arange(36 * t, 36 * (t + 1))
        own = {"keys": tokens.signals["keys"][:, rows], "final_norm": tokens.signals["final_norm"][rows]}
        one = alone(tokens, rows, 6, 6, **{**tokens.signals, **own})
        kept.append(rows[dart(n_keep=k).select(one).keep])
    assert selection.keep.tolist() == torch.cat(kept).tolist()


@pytest.mark.parametrize("name", ["hired", "globalcom2", "holov", "vidcom2"])
@pytest.mark.parametrize("layout", ["anyres", "mixed", "video"])
def test_other_budgets_allot_what_they_keep_themselves(name, layout):
    """Oracle: how many tokens of each share the policy keeps when it chooses by itself; the shares are disjoint."""
    for keep_ratio in (0.1, 0.37):
        budget = POLICIES[name](keep_ratio=keep_ratio)
        tokens = Sample(layout).at(BEFORE_LLM, budget.needs | DivPrune().needs)
        kept = set(budget.select(tokens).keep.tolist())
        shares, _ = budget.allot(tokens)
        assert [share.k for share in shares] == [len(kept & set(share.rows.tolist())) for share in shares]
        rows = torch.cat([share.rows for share in shares]) if shares else torch.zeros(0)
        assert len(rows.unique()) == len(rows)
        chosen = Allotted(budget, DivPrune()).select(tokens).keep
        assert len(chosen) == len(kept)
        for share in shares:
            some = [row for row in chosen.tolist() if row in set(share.rows.tolist())]
            assert len(some) == share.k


def test_crops_are_images_of_their_own():
    """Oracle: HiRED's crops of a 12 x 9 canvas, each alone; evenly spread tokens hang on the shape of a crop."""
    budget, uniform = HiRED(keep_ratio=0.3), POLICIES["uniform"]
    tokens = Sample("anyres").at(BEFORE_LLM, budget.needs)
    shares, _ = budget.allot(tokens)
    assert len(shares) == 5 and len({share.k for share in shares}) > 2
    for chooser in (DivPrune, uniform):
        kept = []
        for share in shares:
            places = tokens.coords[share.rows]
            height, width = (places.amax(0) - places.amin(0) + 1)[2:].tolist()
            if share.k:
                kept.append(share.rows[chooser(n_keep=share.k).select(alone(tokens, share.rows, height, width)).keep])
        assert Allotted(budget, chooser()).select(tokens).keep.tolist() == torch.cat(kept).sort().values.tolist()


def test_answers_of_parts_are_joined():
    """Oracle: each part's own rows, whatever form its answer has; rows of no part stay."""
    tokens = Sample("image").at()
    rows = [torch.arange(start, 144, 4) for start in (0, 1, 2)]
    matrix = torch.zeros(2, 36)
    matrix[0, :6], matrix[1, 5:25] = 1 / 6, 1 / 20
    answers = [
        Selection(torch.tensor([3, 30]), torch.tensor([0] * 10 + [1] * 25 + [-1])),
        Selection(torch.tensor([7])),
        Selection(torch.tensor([0, 9]), matrix.to_sparse()),
        Selection(torch.tensor([1, 2]), values=torch.randn(2, 16)),
    ]
    weighted = Selection(torch.tensor([3, 30]), answers[0].merge, torch.arange(1.0, 37))
    for some in ([0, 1], [1, 1], [2, 1, 0], [3, 2, 0], ["weighted", 0, 1], [2, "weighted"]):
        some = [weighted if one == "weighted" else answers[one] for one in some]
        parts = list(zip(rows, some))
        joined = side_by_side(tokens, parts)
        found = dict(zip(joined.keep.tolist(), merge_rows(tokens.hidden, joined), strict=True))
        covered = torch.cat([part for part, _ in parts]).tolist()
        for part, answer in parts:
            for row, vector in zip(part[answer.keep].tolist(), merge_rows(tokens.hidden[part], answer), strict=True):
                torch.testing.assert_close(found.pop(row), vector)
        assert sorted(found) == sorted(set(range(144)) - set(covered))
        assert all(torch.equal(vector, tokens.hidden[row]) for row, vector in found.items())


@pytest.mark.parametrize("policy", ["vidcom2 >> divprune", "quota >> tome", "hired >> divprune >> fastv"])
def test_in_a_model_a_batch_is_two_of_one(policy):
    """Oracle: each sample alone; the count of the budget."""
    model, kept = tiny.build("qwen2_5_vl", "sdpa", torch.float64), []

    def run(inputs):
        with vtprune.pruned(model, policy, keep_ratio=0.5) as report:
            logits = oracle.text_logits(model, inputs)
            kept.append([record.after for record in report.sites])
            if "fastv" not in policy:
                assert isinstance(report.policy, Allotted)
                assert all(after == before // 2 for before, after in report.tokens)
        return logits

    parts = tiny.video_samples("qwen2_5_vl", "ragged")
    oracle.assert_batch_equals_rows(run, "qwen2_5_vl", parts)
    assert kept[0] == [list(both) for both in zip(*([site[0] for site in one] for one in kept[1:]))]


def test_a_flops_budget_finds_the_budget_s_ratio():
    """Oracle: the count that DivPrune alone keeps for as many FLOPs."""
    model, inputs = tiny.build("qwen2_5_vl", "sdpa", torch.float32), tiny.video("qwen2_5_vl", "one", torch.float32)
    counts = []
    for policy in (Then(VidCom2(), DivPrune()), DivPrune()):
        with vtprune.pruned(model, policy, keep_flops=0.6) as report, torch.no_grad():
            model(**inputs)
            counts.append(report.tokens)
            assert isinstance(report.policy, AtFlops)
    assert counts[0] == counts[1] and counts[0][0][1] < 16


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("uniform", "divprune"), "both choose tokens before the LLM.*Put one of them at a later layer"),
        (("divprune", "hired"), "A budget comes first: HiRED, then DivPrune"),
        (("divprune", "quota"), "A budget comes first: QuoTA, then DivPrune"),
        (("quota", "vidcom2"), "VidCom2 cannot choose tokens.*not n_keep alone.*The budget comes first"),
        (("hired", "quota"), "QuoTA cannot choose"),
    ],
)
def test_wrong_combinations_say_why(stages, words):
    with pytest.raises(ValueError, match=words):
        vtprune.api.named_policy(" >> ".join(stages), {"keep_ratio": 0.3})
    with pytest.raises(ValueError, match=words):
        vtprune.wrap(tiny.build("llava"), Then(*(POLICIES[name]() for name in stages)))


def test_other_mistakes_are_told():
    with pytest.raises(ValueError, match="DivPrune does not say how many tokens each frame"):
        Allotted(DivPrune(), FastV())
    with pytest.raises(ValueError, match="acts at several sites"):
        Allotted(QuoTA(), POLICIES["transprune"]())
    with pytest.raises(ValueError, match="newlines=False"):
        Allotted(QuoTA(), DivPrune(newlines=True))
    with pytest.raises(ValueError, match="unpooled.*pooled"):
        Allotted(QuoTA(features="unpooled"), DivPrune()).select(Sample("video").at())
