"""PruMerge and PruMerge+, against the released code's tokens and the method spelt out on a real CLIP tower."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.blocks.test_key_merge import likest
from tests.policies.fabricate import LAYOUTS, Sample, serve
from tests.policies.golden import load
from tests.test_unprojected import tower_of
from vtprune.attention import Call
from vtprune.policies.prumerge import PruMerge, PruMergePlus, outlier_share
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune.unprojected import Unprojected
from vtprune.vision_signals import joint_class_row


def sample_of(x, score, key):
    """Visual tokens of one image before the projector: x (N, C), attention (N,) of the class token, key (N, d)."""
    signals = {
        "cls_attention_joint:-1": score,
        "vision_keys:-1": key.T[None],
        "unprojected": Unprojected(x, (None,), lambda values: values),
    }
    return VisualTokens(x, x[:1], (Segment(slice(0, len(x))),), signals)


def literal(x, score, key, centres, n=32):
    """(T + 1, C): every centre with its neighbours, then the others; token by token."""
    tokens = [x[c] + sum(score[j] * x[j] for j in likest(key, c, n)) for c in centres]
    return torch.stack([*tokens, sum(score[j] * x[j] for j in range(len(x)) if j not in centres)])


def made(tokens, **options):
    return PruMerge(space="tower", **options).select(tokens).values


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_released_results_are_met(golden):
    """Oracle: the authors' code: centres as sets (some are nearly tied in order), tokens by centre."""
    paths = sorted(golden("prumerge").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        query, key, x = case["query_cls"][None, None, None], case["key"][None, None], case["feat"]
        score = joint_class_row([Call(query, key, 1.0)])[0, 0, 1:]
        policy = PruMerge(
            ratio=None if case["adaptive"] else case["ratio"].item(),
            plus=bool(case["plus"]),
            neighbours=int(case["neighbours"]),
            space="tower",
            compat="released-grid-575",
        )
        answer, centres = policy.select(sample_of(x, score, case["key"][1:])), case["centres"]
        # one row more than the centres is kept, for the sum of the rest
        assert len({*answer.keep.tolist()} - {*centres.tolist()}) == 1 and len(answer.keep) == len(centres) + 1
        expected = case["tokens"][[*centres.argsort().tolist(), len(centres)]]
        torch.testing.assert_close(answer.values, expected, rtol=0, atol=2e-5)


def test_released_order_is_met(golden):
    """Oracle: the authors' code on the case whose scores are far apart: by attention, not by place."""
    case = load(golden("prumerge") / "case03.npz")
    score = joint_class_row([Call(case["query_cls"][None, None, None], case["key"][None, None], 1.0)])[0, 0, 1:]
    found = made(sample_of(case["feat"], score, case["key"][1:]), ratio=0.125, order="method")
    torch.testing.assert_close(found, case["tokens"], rtol=0, atol=2e-5)
    assert case["centres"].diff().min() < 0


def test_outliers_are_counted_by_quartiles():
    """Quartiles .2 and .4, so the bound is .7. Nothing is above it where all are equal."""
    assert outlier_share(torch.tensor([0.1, 0.2, 0.3, 0.4, 5])) == 0.2
    assert outlier_share(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.69])) == 0
    assert outlier_share(torch.ones(7)) == 0
    tokens = sample_of(noise(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.4, 5]).double(), noise(5, 4, seed=1))
    assert len(made(tokens)) == 2, "one centre and the sum of the others"


def test_an_image_without_outliers_has_an_eighth_as_centres_and_says_so():
    """Oracle: the fixed variant."""
    tokens = sample_of(noise(32, 3), torch.linspace(1, 2, 32).double(), noise(32, 4, seed=1))
    answer = PruMerge(space="tower").select(tokens)
    assert torch.equal(answer.values, made(tokens, ratio=1 / 8)) and len(answer.keep) == 5
    assert "an eighth of the tokens are centres" in answer.note


@pytest.mark.parametrize(("n", "ratio", "grid"), [(40, 0.1, 3), (40, 0.125, 2), (41, 0.5, 1), (20, 0.05, 6)])
def test_plus_adds_evenly_spaced_centres(n, ratio, grid):
    """Oracle: the formula: every ``grid``-th token, int(int(1 / ratio) / 3), at least 1, that is no centre yet."""
    x, score, key = noise(n, 3), noise(n, seed=2).exp(), noise(n, 4, seed=1)
    ranked = score.argsort(descending=True).tolist()
    top = ranked[: int(n * ratio)]
    centres = top + [i for i in range(0, n, grid) if i not in top]
    tokens = sample_of(x, score, key)
    if len(centres) == n:
        answer = PruMergePlus(ratio=ratio, space="tower").select(tokens)
        assert answer.keep.tolist() == list(range(n)) and answer.values is None
        return
    for order, expected in (("method", centres), ("raster", sorted(centres))):
        found = made(tokens, ratio=ratio, plus=True, order=order, neighbours=5)
        torch.testing.assert_close(found, literal(x, score, key, expected, 5), rtol=1e-6, atol=1e-6)


def test_the_released_grid_ends_before_the_last_patch():
    """By the formula all of 576 patches are centres in steps of 1; in the release 575 is the only other."""
    x, score, key = noise(576, 3), torch.linspace(2, 1, 576).double(), noise(576, 4, seed=1)
    tokens, options = sample_of(x, score, key), {"ratio": 0.3, "plus": True, "neighbours": 1}
    assert made(tokens, **options) is None, "kept whole"
    found = made(tokens, compat="released-grid-575", **options)
    assert len(found) == 576
    torch.testing.assert_close(found[-1], x[575] * score[575], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", [PruMerge, PruMergePlus])
@pytest.mark.parametrize("space", ["decoder", "tower"])
def test_a_number_that_is_asked_for_is_met(cls, space):
    """Oracle: the one rule of rounding, in every layout; with one token no sum of the rest is added."""
    for layout in LAYOUTS:
        sample = Sample(layout)
        for options in ({"keep_ratio": 0.25}, {"keep_ratio": 0.9}, {"n_keep": 1}, {"n_keep": 7}):
            policy = cls(space=space, **options)
            tokens = sample.at(needs=policy.needs - {"unprojected"})
            seen = Unprojected(tokens.hidden, (None,) * len(tokens.segments), lambda x: x)
            tokens = VisualTokens(tokens.hidden, tokens.text, tokens.segments, {**tokens.signals, "unprojected": seen})
            answer = policy.select(tokens)
            for segment in tokens.segments:
                n = len(segment)
                wanted = options.get("n_keep") or round(options["keep_ratio"] * n)
                here = sum(segment.span.start <= row < segment.span.stop for row in answer.keep.tolist())
                assert here == min(n, max(1, wanted)), (layout, options)
            assert answer.values is None or answer.values.isfinite().all()


def test_plus_with_a_number_takes_a_quarter_by_attention_and_the_others_evenly():
    """Oracle: 8 centres of 24: the two most looked at, and six evenly spaced ones of the 22 others."""
    x, score, key = noise(24, 3), noise(24, seed=2).exp(), noise(24, 4, seed=1)
    top = score.argsort(descending=True)[:2].tolist()
    others = [i for i in range(24) if i not in top]
    centres = sorted(top + [others[i * 22 // 6] for i in range(6)])
    found = made(sample_of(x, score, key), n_keep=9, plus=True, neighbours=4)
    torch.testing.assert_close(found, literal(x, score, key, centres, 4), rtol=1e-6, atol=1e-6)


def test_after_the_projector_the_same_weights_average():
    """Oracle: ``literal``'s sums with all weights scaled to 1, each in its place."""
    [(tokens, answer)] = serve(PruMerge(keep_ratio=0.3, neighbours=4), Sample("image"))
    x, score = tokens.hidden.double(), tokens.signals["cls_attention_joint:-1"].double()
    key = tokens.signals["vision_keys:-1"].flatten(0, 1).T.double()
    centres = sorted(score.argsort(descending=True)[: round(0.3 * len(x)) - 1].tolist())
    ones = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    sums = literal(ones, score, key, centres, 4)
    spare = max(set(range(len(x))) - set(centres))
    order = sorted(range(len(sums)), key=[*centres, spare].__getitem__)
    assert answer.keep.tolist() == sorted([*centres, spare])
    expected = (sums[:, :-1] / sums[:, -1:])[order]
    torch.testing.assert_close(torch.sparse.mm(answer.merge.double(), x), expected, rtol=1e-5, atol=1e-6)


def test_equal_tokens_and_one_token():
    """No nan, the lowest of equals, and one token is itself."""
    equal = sample_of(torch.zeros(16, 3), torch.full((16,), 1 / 16), torch.zeros(16, 4))
    assert PruMerge(space="tower").select(equal).keep.tolist() == [0, 1, 15]
    for policy in (PruMerge(space="tower"), PruMergePlus(space="tower"), PruMergePlus(space="decoder", n_keep=5)):
        answer = policy.select(equal)
        assert answer.values is None or answer.values.isfinite().all()
        one = policy.select(sample_of(torch.ones(1, 3), torch.ones(1), torch.ones(1, 4)))
        assert one.keep.tolist() == [0] and one.values is None


def test_it_fits_itself_to_the_model():
    facts = {"model_type": "llava", "depth": 4, "width": 8, "line_positions": True}
    published = PruMergePlus(layer=-2).fitted(ModelFacts(class_token=True, **facts))
    assert published.needs == {"cls_attention_joint:-2", "vision_keys:-2", "unprojected"} and published.notes == ()
    assert published.plus and published.keep_ratio is None
    other = PruMerge().fitted(ModelFacts(class_token=False, **facts))
    assert other.needs == {"vision_attention", "vision_keys:-1"} and len(other.notes) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("ratio", bad) for bad in (0, 1.5, True)]
    + [("neighbours", bad) for bad in (0, 2.5, True)]
    + [("layer", 0.5), ("plus", "yes"), ("order", "sorted"), ("space", "both"), ("signal", "both"), ("compat", "575")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError) as error:
        PruMerge(**{option: value})
    assert repr(value) in str(error.value)


def test_centres_and_all_tokens_are_not_counted_together():
    with pytest.raises(ValueError, match=r"give one; got ratio=0\.125 with keep_ratio=0\.5"):
        PruMerge(ratio=0.125, keep_ratio=0.5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_a_wrapped_model_sees_the_tokens_made_by_hand(name):
    """Oracle: ``literal`` on projections and hidden states of the tower, the model's projector, and ``generate`` on a
    prompt made of that."""
    model, inputs = tiny.build("llava", "sdpa", torch.float64), tiny.batch("llava", "one")
    blocks, states = tower_of(model, inputs["pixel_values"])
    last, normed = blocks[-1].self_attn, blocks[-1].layer_norm1(states[-2][0])
    query, key = last.q_proj(normed)[0], last.k_proj(normed)
    score, n = (key @ query / len(query) ** 0.5).softmax(0)[1:], len(key) - 1
    options = {"ratio": 0.12, "neighbours": 3}
    centres = set(score.argsort(descending=True)[: int(n * 0.12)].tolist())
    centres = sorted(centres | set(range(0, n, 2) if name == "prumerge_plus" else ()))
    image = model.model.multi_modal_projector(literal(states[-2][0, 1:], score, key[1:], centres, 3)[None])
    prompt, columns = oracle.embeddings(model, inputs), tiny.visual(inputs)[0].nonzero().flatten()
    made = torch.cat([prompt[:, : columns[0]], image, prompt[:, columns[-1] + 1 :]], 1)
    expected = tiny.greedy(model, {"inputs_embeds": made, "attention_mask": torch.ones(made.shape[:2]).long()}, 4)
    with vtprune.pruned(model, name, **options) as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.tokens[0] == (n, len(centres) + 1) and report.notes == []
    torch.testing.assert_close(torch.cat(found.logits), torch.cat(expected.logits), rtol=0, atol=1e-5)
