"""Attention weighed by values, against the released code's masks, CriticalKV's scores and worked examples."""

import pytest
import torch

from tests.cache_scores.cases import asked, case, cases, random_attention
from vtprune.cache_scores.caote import output_change
from vtprune.cache_scores.critical import critical
from vtprune.cache_scores.keep import between, keep_best
from vtprune.cache_scores.probe import causal, received
from vtprune.cache_scores.value_weight import value_norm, weigh

MOST = torch.finfo(torch.float32).max


def who_stays(score, heavy, recent):
    """(H, T + 1) bool: the heavy hitters, the last entries and the coming one."""
    keep = torch.zeros(len(score), score.shape[1] + 1, dtype=torch.bool)
    keep[:, -1] = True
    if score.shape[1] <= heavy + recent:
        return torch.ones_like(keep)
    return keep.scatter(1, keep_best(score, heavy, between(score.shape[1], 0, recent)), True)


def test_released_masks_are_met(golden):
    """Oracle: the authors' code: who stays after the prompt and after one token more, and by which scores."""
    for stored in cases(golden("vatp")):
        attention, n, sink = stored["attn"], stored["attn"].shape[-1], stored["sink_len"]
        heavy, recent = stored["heavy_budget"], stored["recent_budget"]
        how = "l1_v" if stored["apply_value"] else "none"
        place, last = torch.arange(n), n if stored["h2o"] else 400
        q, k = asked(attention[:, :, -last:])
        paid = received(q, k, scale=1.0, visible=causal(place[-last:], place))[0] / (1 if stored["h2o"] else 400)
        score = weigh(paid, stored["values"][0], how)
        if stored["apply_value"]:
            score[:, :sink] = MOST
        keep = who_stays(score, heavy, recent)
        assert torch.equal(keep, stored["keep_after_prefill"].bool())
        # what goes is forgotten
        score = score.masked_fill(~keep[:, :-1], 0)
        torch.testing.assert_close(score, stored["scores_after_prefill"], rtol=1e-4, atol=1e-6)
        step = weigh(stored["attn_step2"][0, :, 0], stored["values_step2"][0], how)
        step[:, :-1] += score
        keep = who_stays(step, heavy, recent)
        assert torch.equal(keep, stored["keep_after_step2"].bool())
        step = step.masked_fill(~keep[:, :-1], 0)
        torch.testing.assert_close(step, stored["scores_after_step2"], rtol=1e-4, atol=1e-6)


def test_worked_example():
    """Oracle: by hand."""
    attention, values = torch.tensor([[0.7, 0.8, 0.5]]), torch.tensor([[[1.0, 1], [3, -5], [0, -1]]])
    torch.testing.assert_close(weigh(attention, values, "l1_v"), torch.tensor([[1.4, 6.4, 0.5]]))
    torch.testing.assert_close(weigh(attention, values, "l2_v"), torch.tensor([[0.7 * 2**0.5, 0.8 * 34**0.5, 0.5]]))
    assert torch.equal(weigh(attention, values), attention)


def test_what_is_given_is_not_written_to():
    """Oracle: the score itself, which one head has for all; first entries are then marked in what comes back."""
    shared = torch.tensor([[0.7, 0.8, 0.5]])
    score = weigh(shared.expand(4, -1), torch.ones(4, 3, 2), "none")
    score[:, :1] = torch.inf
    assert shared.tolist() == torch.tensor([[0.7, 0.8, 0.5]]).tolist() and bool(score[:, 0].isinf().all())


def test_projected_values_are_those_of_the_model():
    """Oracle: the output projection itself, given one head's values and zeros elsewhere."""
    generator = torch.Generator().manual_seed(0)
    project = torch.nn.Linear(6 * 4, 10, bias=False)
    values = torch.randn(2, 3, 7, 4, generator=generator)
    expected = torch.zeros(2, 3, 7)
    for head in range(6):
        x = torch.zeros(2, 7, 6, 4)
        x[:, :, head] = values[:, head // 2]
        expected[:, head // 2] += project(x.flatten(2)).detach().abs().sum(-1) / 2
    torch.testing.assert_close(value_norm(values, "l1_WoV", w_o=project.weight), expected)


def test_values_are_projected_in_blocks(monkeypatch):
    """Oracle: all at once."""
    generator = torch.Generator().manual_seed(0)
    values, w_o = torch.randn(3, 7, 4, generator=generator), torch.randn(10, 12, generator=generator)
    whole = value_norm(values, "l1_WoV", w_o=w_o)
    monkeypatch.setattr("vtprune.cache_scores.value_weight.BLOCK", 25)
    torch.testing.assert_close(value_norm(values, "l1_WoV", w_o=w_o), whole, rtol=1e-6, atol=1e-6)


def test_rows_are_weighed_one_by_one():
    """Oracle: sizes do not care in which order means are taken; changes of the output, row by row and head by head."""
    rows = random_attention(2, 3, 4, 9)
    values = torch.randn(2, 3, 9, 5, generator=torch.Generator().manual_seed(0))
    for how in ("none", "l1_v", "l2_v"):
        torch.testing.assert_close(weigh(rows, values, how), weigh(rows.mean(2), values, how))
    for how in ("caote", "caote_fast"):
        found = weigh(rows, values, how)
        for b in range(2):
            for h in range(3):
                each = [output_change(row[None], values[b, h], how == "caote_fast")[0] for row in rows[b, h]]
                torch.testing.assert_close(found[b, h], torch.stack(each).mean(0))
    # any score is scaled to sum 1 first
    score = rows[:, :, 0]
    torch.testing.assert_close(weigh(score * 9, values, "caote"), weigh(rows[:, :, :1], values, "caote"))


def test_released_critical_scores_are_met(golden):
    """Oracle: the released code, on observed attention, of which half of the entries stay."""
    stored = case(golden("kvpress") / "tiny_llama_layer1")
    base = stored["results/observed/score"]
    norm = value_norm(stored["values"], "l1_WoV", w_o=stored["o_proj"])
    score, expected = critical(base, norm, first=12), stored["results/critical_observed/score"]
    assert torch.equal(score == MOST, expected == MOST) and int((score == MOST).sum()) == 24
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=0)


def test_only_candidates_are_critical():
    """Oracle: by hand."""
    base, norm = torch.tensor([[0.5, 0.4, 0.1, 0.4]]), torch.tensor([[1.0, 2, 3, 4]])
    score = critical(base, norm, 1, torch.tensor([False, True, True, True]))
    torch.testing.assert_close(score, torch.tensor([[0.5001, MOST, 0.3003, 1.6004]]))
    with pytest.raises(ValueError, match="0 to 3.*got 4"):
        critical(base, norm, 4, torch.tensor([False, True, True, True]))


def test_wrong_calls_are_refused_by_value():
    a, v = torch.ones(2, 5), torch.ones(2, 5, 4)
    with pytest.raises(ValueError, match="'caote_fast'; got 'l3'"):
        weigh(a, v, "l3")
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 6, 4\)"):
        weigh(a, torch.ones(2, 6, 4))
    with pytest.raises(ValueError, match="l1_WoV.*got None"):
        weigh(a, v, "l1_WoV")
    with pytest.raises(ValueError, match=r"got \(3, 12\)"):
        weigh(a, v, "l1_WoV", w_o=torch.ones(3, 12))
