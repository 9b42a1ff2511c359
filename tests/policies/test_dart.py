"""DART, against the released code's picks, the plain procedure, and picks by hand in wrapped models."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from tests.policies.test_idpruner import kept, noise
from vtprune.blocks.pivots import grow, visiting_order
from vtprune.policies.dart import DART
from vtprune.tokens import Segment, VisualTokens


def sample(keys, states, starts, counts):
    """A prompt of (H, L, d) keys and (L, D) states with images of ``counts`` tokens from columns ``starts`` on."""
    columns = torch.arange(keys.shape[1])
    visual = sum((columns >= s) & (columns < s + n) for s, n in zip(starts, counts)).bool()
    spans, at = [], 0
    for n in counts:
        spans.append(Segment(slice(at, at + n)))
        at += n
    signals = {
        "keys": keys[:, visual],
        "text_keys": keys[:, ~visual],
        "final_norm": states[visual],
        "text_final_norm": states[~visual],
    }
    places = {"position": columns[visual], "text_position": columns[~visual]}
    return VisualTokens(states[visual], states[~visual], tuple(spans), signals, site=2, **places)


def literal(keys, states, start, n, k, pivots=(4, 4), after=None):
    """Columns that one image keeps: its pivots, and in turn what is least like each, as even a number as possible."""
    length = keys.double().abs().sum((0, 2)).tolist()
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    text = range(start + n if after is None else after, len(length))
    image = sorted(range(start, start + n), key=lambda i: -length[i])[: min(pivots[0], k)]
    order = image + sorted(text, key=lambda i: -length[i])[: pivots[1]]
    pool, chosen, left = [i for i in range(start, start + n) if i not in image], list(image), k - len(image)
    for turn, pivot in enumerate(order):
        share = -(-left // (len(order) - turn))
        least = sorted(pool, key=lambda i: float(unit[pivot] @ unit[i]))[:share]
        chosen += least
        left -= len(least)
        pool = [i for i in pool if i not in least]
    return sorted(chosen)


def test_released_results_are_met(golden):
    """Oracle: the authors' code, as distributed with a benchmark; and the numbers of tokens that it keeps."""
    paths = sorted(golden("dart").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        start, n = int(case["image_start"]), int(case["n_image"])
        asked = {"keep_ratio": 1 - case["reduction_ratio"].item()}
        asked = asked if case["max_num"] < 0 else {"n_keep": int(case["max_num"])}
        pivots = {"image_pivots": int(case["pivots_image"]), "text_pivots": int(case["pivots_text"])}
        tokens = sample(case["keys"], case["state"], [start], [n])
        released = DART(**asked, **pivots, exact_budget=False, compat="released-set-order")
        assert (released.select(tokens).keep + start).tolist() == case["keep_abs"].tolist(), path.name
        ours = kept(DART(**asked, **pivots, exact_budget=False), tokens)
        assert len(ours) == len(case["keep_abs"]) and ours != kept(released, tokens), path.name


# where the authors' code visits the pivots of the stored cases
@pytest.mark.parametrize(
    "order",
    [
        [40, 11, 15, 16, 49, 54, 56, 57],
        [32, 97, 98, 37, 70, 108, 48, 92],
        [70, 42, 52, 87, 89],
        [355, 334, 272, 180, 629, 633, 636, 637],
        [620, 627, 628, 566, 311, 92, 638, 159],
    ],
)
def test_the_order_of_a_set_is_that_of_its_hashes(order):
    assert visiting_order(sorted(order)) == order


@pytest.mark.parametrize(("n", "k"), [(30, 17), (30, 4), (30, 2), (30, 1), (30, 29), (9, 8), (2, 1)])
def test_as_many_as_asked_for_are_kept(n, k):
    """Oracle: ``literal``."""
    keys, states = noise(2, n + 15, 5), noise(n + 15, 8, seed=1)
    found = kept(DART(n_keep=k), sample(keys, states, [6], [n]))
    assert [i + 6 for i in found] == literal(keys, states, 6, n, k) and len(found) == k


@pytest.mark.parametrize("after", [0, 1, 3])
def test_few_words_after_the_image_are_fewer_pivots(after):
    """Oracle: ``literal``; the text before the image has no pivots."""
    keys, states = noise(2, 26 + after, 5), noise(26 + after, 8, seed=1)
    keys[:, :6] *= 100
    found = kept(DART(n_keep=11), sample(keys, states, [6], [20]))
    assert [i + 6 for i in found] == literal(keys, states, 6, 20, 11)


def test_worked_example():
    """Pivots 1 and 6: 4 is least like 1, and of 2, 3 and 5 the last is least like 6. Three for a nominal two."""
    norms = torch.tensor([1.0, 9, 3, 5, 2, 4, 8, 1])
    states = torch.tensor([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [-1, 0], [0.8, 0.6], [0, 1], [1, 0]])
    tokens = sample(norms[None, :, None], states, [1], [5])
    policy = DART(n_keep=2, image_pivots=1, text_pivots=1, exact_budget=False)
    assert [i + 1 for i in kept(policy, tokens)] == [1, 4, 5]
    assert [i + 1 for i in kept(DART(n_keep=2, image_pivots=1, text_pivots=1), tokens)] == [1, 4]


@pytest.mark.parametrize(("asked", "count"), [({"n_keep": 192}, 196), ({"n_keep": 128}, 132), ({"n_keep": 64}, 68)])
def test_published_counts(asked, count):
    tokens = sample(noise(1, 640, 4), noise(640, 6, seed=1), [35], [576])
    assert len(kept(DART(**asked, exact_budget=False), tokens)) == count
    assert len(kept(DART(**asked), tokens)) == asked["n_keep"]


def test_equal_tokens_are_kept_in_order():
    assert kept(DART(n_keep=6), sample(torch.ones(1, 20, 2), torch.ones(20, 3), [4], [10])) == [0, 1, 2, 3, 4, 5]
    assert len(kept(DART(n_keep=6), sample(torch.zeros(1, 20, 2), torch.zeros(20, 3), [4], [10]))) == 6
    assert kept(DART(n_keep=1), sample(torch.ones(1, 3, 2), torch.ones(3, 3), [1], [1])) == [0]
    assert kept(DART(n_keep=16, exact_budget=False, image_pivots=1), sample(noise(1, 12, 2), noise(12, 3), [0], [9]))


def test_ties_go_to_the_lowest_row_whatever_earlier_pivots_took():
    """To the second pivot all are alike; the first took row 1, so row 0 is next."""
    x, none = torch.tensor([[1.0, 0], [-1, 0], [-1, 0], [1, 0]]), torch.zeros(4, dtype=torch.bool)
    assert grow(x, torch.eye(2), none, [1, 1]).tolist() == [1, 0]
    assert grow(x, torch.eye(2), none, [3, 9]).tolist() == [1, 2, 0, 3]
    assert grow(x, torch.eye(2)[:0], none, []).tolist() == []


def test_images_have_their_own_pivots_and_share_those_of_the_text():
    """Oracle: ``literal`` on each image, with the text after the last one."""
    keys, states = noise(2, 50, 5), noise(50, 8, seed=1)
    tokens = sample(keys, states, [3, 25], [20, 14])
    own = [i - 3 for i in literal(keys, states, 3, 20, 10, after=39)]
    own += [i - 5 for i in literal(keys, states, 25, 14, 7, after=39)]
    assert kept(DART(), tokens) == own
    assert len(kept(DART(budget="prompt"), tokens)) == 17


@pytest.mark.parametrize(
    ("option", "value"),
    [("layer", 0), ("layer", 1.5), ("image_pivots", 0), ("text_pivots", -1), ("text_pivots", True)]
    + [("exact_budget", "no"), ("compat", "released")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        DART(**{option: value})
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_wrapped_model_keeps_what_is_picked_by_hand(family):
    """Oracle: ``literal`` on the unpruned model's cache and hidden states, then decoding with columns masked."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "one")
    columns = tiny.visual(inputs)[0].nonzero()[:, 0]
    out = model(**inputs, output_hidden_states=True, use_cache=True)
    keys = out.past_key_values.layers[1].keys[0]
    states = tiny.text_model(model).norm(out.hidden_states[2][0])
    k = round(0.6 * len(columns))
    rows = literal(keys, states, int(columns[0]), len(columns), k)
    mask = ~tiny.visual(inputs)
    mask[0, rows] = True
    with oracle.MaskedColumns(model, {2: mask}):
        expected = tiny.greedy(model, inputs, 4)
    with vtprune.pruned(model, "dart", keep_ratio=0.6) as report:
        found = tiny.greedy(model, inputs, 4)
        assert columns[report.kept()[0].rows].tolist() == rows
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_batch_is_its_samples(family):
    """Oracle: every sample alone; unequal numbers of visual tokens and of text."""
    model = tiny.build(family, "sdpa", torch.float64)

    def run(inputs):
        with vtprune.pruned(model, "dart", keep_ratio=0.5):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"))
