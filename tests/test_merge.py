"""Merging: assignments, weights and sparse plans give the rows that a matrix product gives."""

from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import answer
from vtprune import BEFORE_LLM, Selection

FAMILIES = [f for f in tiny.FAMILIES if f not in ("gemma3", "paligemma", "qwen3_vl")]


@cache
def model_of(family: str):
    return tiny.build(family)


def matrix(keep, group, weight, n) -> torch.Tensor:
    """(K, N) float64, the averaging that an assignment means, entry by entry."""
    plan = torch.zeros(len(keep), n, dtype=torch.float64)
    for i, g in enumerate(group.tolist()):
        if g >= 0:
            plan[g, i] = 1 if weight is None else weight[i]
    return plan / plan.sum(1, keepdim=True)


class Groups:
    """Merges threes into their middle row, as an assignment, with weights, or as a sparse plan."""

    needs = frozenset()

    def __init__(self, site, form):
        self.sites, self.form = (site,), form

    def answer(self, n):
        group = torch.arange(n) // 3
        members = [(group == g).nonzero().flatten() for g in range(int(group.max()) + 1)]
        keep = torch.stack([rows[len(rows) // 2] for rows in members])
        if n > 4:
            group[torch.arange(n)[(torch.arange(n) % 7 == 6)]] = -1
            group[keep] = torch.arange(len(keep))
        weight = 0.5 + torch.arange(n, dtype=torch.float64) if self.form == "weighted" else None
        return keep, group, weight

    def select(self, tokens):
        n = len(tokens)
        keep, group, weight = self.answer(n)
        if self.form == "plan":
            return Selection(keep, merge=matrix(keep, group, weight, n).to_sparse())
        return Selection(keep, merge=group, weight=weight)


@pytest.mark.parametrize("form", ["assignment", "weighted", "plan"])
@pytest.mark.parametrize("site", [BEFORE_LLM, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_rows_are_a_matrix_product(family, site, form):
    """Oracle: a hand-written layer loop that multiplies the hidden states by the averaging matrix."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    policy = Groups(site, form)
    with vtprune.pruned(model, policy) as report, torch.no_grad():
        out = model(**inputs, **oracle.positions(inputs))
        last = report.last
        columns = last.layout.rows[0].columns[last.offered[0]]
    keep, group, weight = policy.answer(len(columns))
    length = inputs["input_ids"].shape[1]
    others = torch.tensor(sorted(set(range(length)) - set(columns.tolist())))
    rows = torch.cat([others, columns[keep]]).sort().values
    weights = torch.zeros(len(rows), length, dtype=torch.float64)
    weights[torch.searchsorted(rows, others), others] = 1
    weights[torch.searchsorted(rows, columns[keep])[:, None], columns[None]] = matrix(keep, group, weight, len(columns))
    expected = oracle.layer_loop(model, inputs, {max(site, 0): oracle.Cut(rows, weights)})
    torch.testing.assert_close(out.logits[0, rows], expected.logits, atol=1e-8, rtol=1e-8)


def test_deepstack_features_are_merged_like_their_tokens():
    """Oracle: the stock text model on a prompt, positions and DeepStack features that were averaged by hand."""
    model, inputs = model_of("qwen3_vl"), tiny.batch("qwen3_vl", "one")
    policy, caught = Groups(BEFORE_LLM, "weighted"), {}
    text = model.model.language_model
    hook = text.register_forward_pre_hook(lambda m, a, k: caught.update(k), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    columns = caught["visual_pos_masks"][0].nonzero().flatten()
    keep, group, weight = policy.answer(len(columns))
    plan = matrix(keep, group, weight, len(columns))
    length = inputs["input_ids"].shape[1]
    others = torch.tensor(sorted(set(range(length)) - set(columns.tolist())))
    rows = torch.cat([others, columns[keep]]).sort().values
    hidden = caught["inputs_embeds"][:, rows].clone()
    visual = torch.isin(rows, columns[keep])
    hidden[0, visual] = plan @ caught["inputs_embeds"][0, columns]
    with torch.no_grad():
        short = text(
            inputs_embeds=hidden,
            position_ids=caught["position_ids"][..., rows][-3:],
            visual_pos_masks=visual[None],
            deepstack_visual_embeds=[plan @ features for features in caught["deepstack_visual_embeds"]],
            use_cache=True,
        )
        with vtprune.pruned(model, policy):
            got = model(**inputs).logits[0, rows]
    torch.testing.assert_close(got, model.lm_head(short.last_hidden_state)[0], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", ["padded", "ragged"])
def test_merging_works_in_batches(kind):
    """Oracle: each sample alone."""
    model = model_of("llava")

    def run(inputs):
        with vtprune.pruned(model, Groups(1, "assignment")):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, "llava", tiny.samples("llava", kind))


def test_pooling_to_one_token_keeps_the_mean():
    """Oracle: the mean of the embeddings, put where the policy says."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    embeds = oracle.embeddings(model, inputs)[0]
    seen = []
    with vtprune.pruned(model, "pool", n_keep=1):
        hook = model.model.language_model.layers[0].self_attn.register_forward_pre_hook(
            lambda m, a, k: seen.append(k["hidden_states"]), with_kwargs=True
        )
        answer(model, inputs, 1)
        hook.remove()
    visual = tiny.visual(inputs)[0]
    norm = model.model.language_model.layers[0].input_layernorm
    expected = norm(embeds[visual].mean(0))
    assert any(torch.allclose(row, expected, atol=1e-9) for row in seen[0][0])
