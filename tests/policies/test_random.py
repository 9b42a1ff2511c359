"""Random selection: the oracle is the hypergeometric law, and that nothing but seed, prompt and site matters."""

import math
from itertools import combinations

import pytest
import torch

from tests.policies.fabricate import Sample, serve
from vtprune.policies.random import Random
from vtprune.tokens import BEFORE_LLM, Segment, VisualTokens


def draw(policy, seed=0, n=12):
    hidden = torch.zeros(n, 2)
    return policy.select(
        VisualTokens(hidden, hidden[:1], (Segment(slice(0, n)),), site=policy.sites[0], seed=seed)
    ).keep.tolist()


@pytest.mark.parametrize("vary", ["policy seed", "prompt"])
def test_every_set_is_equally_likely(vary):
    """3 of 12: a token is in 1/4 of the draws, a pair in 1/22. Allowed: five binomial standard deviations."""
    n_draws, n, k = 3000, 12, 3
    if vary == "prompt":
        draws = [draw(Random(n_keep=k), seed=s) for s in range(n_draws)]
    else:
        draws = [draw(Random(n_keep=k, seed=s)) for s in range(n_draws)]
    for size, chance in ((1, 1 / 4), (2, 1 / 22)):
        counts = dict.fromkeys(combinations(range(n), size), 0)
        for rows in draws:
            for group in combinations(rows, size):
                counts[group] += 1
        allowed = 5 * math.sqrt(n_draws * chance * (1 - chance))
        assert max(abs(count - n_draws * chance) for count in counts.values()) < allowed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: draw(Random(), n=100), lambda: draw(Random(seed=1), n=100)),
        (lambda: draw(Random(), n=100), lambda: draw(Random(), seed=1, n=100)),
        (lambda: draw(Random(layer=2), n=100), lambda: draw(Random(layer=3), n=100)),
        (lambda: draw(Random(seed=1), seed=11, n=100), lambda: draw(Random(seed=11), seed=1, n=100)),
    ],
    ids=["seed", "prompt", "site", "seed and prompt swapped"],
)
def test_another_seed_prompt_or_site_is_another_draw(one, other):
    """Two equal draws of 50 in 100 by chance: one in 1e29."""
    assert one() != other()


def test_the_hidden_states_do_not_matter():
    rows = [
        serve(Random(), Sample("mixed", dtype=dtype))[0][1].keep.tolist() for dtype in (torch.float32, torch.float16)
    ]
    assert rows[0] == rows[1]


@pytest.mark.gpu
def test_a_gpu_gives_the_answer_of_the_cpu():
    rows = [serve(Random(), Sample("mixed", device=device))[0][1].keep.tolist() for device in ("cpu", "cuda")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("layer", [BEFORE_LLM, 0, 2, 31])
def test_it_can_stand_at_any_layer(layer):
    assert Random(layer=layer).sites == (layer,)


@pytest.mark.parametrize(
    ("option", "value"), [("layer", -2), ("layer", 1.5), ("layer", True), ("seed", 0.5), ("seed", None)]
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option} is .*; got {value}"):
        Random(**{option: value})
