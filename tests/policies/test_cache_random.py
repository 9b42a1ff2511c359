"""The lot of the cache: how many stay, that every prompt draws for itself, and that all tokens are drawn as often."""

import pytest
import torch

from tests import tiny
from tests.masked import model_of
from tests.policies.by_hand import kept_by
from tests.policies.contract import samples_of
from vtprune.cached import CachedPrompt, CachedSlots
from vtprune.policies.cache_random import CacheRandom


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_prompt_draws_for_itself(kind):
    """Oracle: each sample alone; other layers, prompts and seeds draw otherwise."""
    model, samples = model_of("qwen2_5_vl"), samples_of("qwen2_5_vl", kind)

    def drawn(batch, **options):
        return kept_by(model, tiny.collate("qwen2_5_vl", batch), "cache_random", keep_ratio=0.4, **options)

    together = drawn(samples)
    for b, sample in enumerate(samples):
        alone = drawn([sample])
        assert all(torch.equal(one[0], whole[b]) for one, whole in zip(alone.kept, together.kept, strict=True))
        n = together.before[0][b]
        assert sum(layer[b] for layer in together.after) == round(0.4 * n * 4)
    rows = [tuple(layer[0].tolist()) for layer in together.kept]
    assert len(set(rows)) == 4, "the same in all layers"
    other = drawn(samples, seed=1)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(other.kept, together.kept, strict=True))


def test_all_tokens_are_drawn_as_often():
    """Oracle: the binomial distribution: 400 draws of 4 of 10 keep each 160 times, give or take 5 deviations."""
    layer, counts = CachedSlots(0, torch.arange(3, 13), torch.arange(10)), torch.zeros(10)
    for seed in range(400):
        prompt = CachedPrompt([layer], [torch.zeros(10)], stored=None, visual=10, length=20, seed=seed)
        counts[CacheRandom(n_keep=4).evict(prompt).layers[0].keep] += 1
    assert counts.sum() == 1600 and ((counts - 160).abs() < 5 * (400 * 0.4 * 0.6) ** 0.5).all()


@pytest.mark.parametrize("seed", [1.0, True, None, "1"])
def test_a_wrong_seed_is_told(seed):
    with pytest.raises(ValueError, match="seed is an integer") as error:
        CacheRandom(seed=seed)
    assert repr(seed) in str(error.value)
