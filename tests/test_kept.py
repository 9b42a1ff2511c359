"""Which kept token stands for each token: random answers at several sites against a dictionary followed by hand."""

from functools import cache

import pytest
import torch

import vtprune
from tests import tiny
from tests.probe import answer
from vtprune import BEFORE_LLM, Selection, inside
from vtprune.kept import stand_ins


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32)


FORMS = ("drop", "merge", "weights", "values")


class Chance:
    """Answers of every form at random; ``log`` holds by site and sample what was offered and answered."""

    needs = frozenset()

    def __init__(self, *sites: float, forms=FORMS, seed: int = 0):
        self.sites, self.forms, self.log = sites, forms, []
        self.generator = torch.Generator().manual_seed(seed)

    def select(self, tokens):
        n = len(tokens)
        k = int(torch.randint(1, n + 1, (), generator=self.generator))
        keep = torch.randperm(n, generator=self.generator)[:k].sort().values
        form = self.forms[int(torch.randint(len(self.forms), (), generator=self.generator))]
        merge = values = None
        if form == "merge":
            merge = torch.randint(-1, k, (n,), generator=self.generator)
            merge[keep] = torch.arange(k)
        elif form == "weights":
            # few different weights, so that several are largest, and a quarter of them 0
            dense = torch.randint(0, 4, (k, n), generator=self.generator).float()
            dense[torch.arange(k), keep] += (dense.sum(1) == 0).float()
            merge = (dense / dense.sum(1, keepdim=True)).to_sparse()
        elif form == "values":
            values = tokens.hidden[keep] * 2
        self.log.append((tokens.site, tokens.seed, tokens.rows.tolist(), keep.tolist(), merge))
        last = bool(torch.rand((), generator=self.generator) < 0.15)
        return Selection(keep, merge, values=values, last=last)


def followed(log, n: int) -> dict[int, int]:
    """Row -> the row that stands for it after all calls of ``log``, -1 if it was dropped; dicts and loops alone."""
    where = {row: row for row in range(n)}
    for _, _, rows, keep, merge in log:
        step = {}
        for i, row in enumerate(rows):
            into = keep.index(i) if i in keep else -1
            if merge is not None and merge.is_sparse:
                column = merge.to_dense()[:, i].tolist()
                if max(column) > 0:
                    into = column.index(max(column))
            elif merge is not None:
                into = int(merge[i])
            step[row] = -1 if into < 0 else rows[keep[into]]
        where = {row: step.get(at, -1) for row, at in where.items()}
    return where


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen3_vl"])
def test_every_token_is_followed_through_all_sites(family, seed):
    """Oracle: the policy's own answers, followed token by token; several images, up to four sites."""
    model, inputs = model_of(family), tiny.batch(family, "ragged", torch.float32)
    policy = Chance(BEFORE_LLM, 1, inside(1), 3, seed=seed)
    with vtprune.pruned(model, policy) as report:
        answer(model, inputs, 1)
        seeds = list(dict.fromkeys(call[1] for call in policy.log))
        for sample, prompt in enumerate(seeds):
            calls = [call for call in policy.log if call[1] == prompt]
            for i, record in enumerate(report.sites):
                kept = report.kept(sample, i)
                expected = followed([call for call in calls if call[0] <= record.site], report.tokens[sample][0])
                assert [int(t) for one in kept for t in one.target] == list(expected.values())
                first = 0
                for one in kept:
                    told = [one.rows.tolist()[i] if i >= 0 else -1 for i in one.into.tolist()]
                    own = set(one.rows.tolist())
                    assert told == [t if t in own else -1 for t in list(expected.values())[first : first + one.of]]
                    assert len(one.places) == len(one.into) == one.of
                    assert torch.equal(one.places[one.rows - first], one.coords)
                    first += one.of


def test_places_are_those_of_all_tokens():
    """Oracle: the coordinates that the policy was shown before anything was pruned."""
    model, inputs = model_of("qwen2_5_vl"), tiny.batch("qwen2_5_vl", "two_images", torch.float32)
    shown = []

    class Look(Chance):
        def select(self, tokens):
            shown.append(tokens.coords)
            return super().select(tokens)

    with vtprune.pruned(model, Look(BEFORE_LLM, 2)) as report:
        answer(model, inputs, 1)
        assert torch.equal(torch.cat([one.places for one in report.kept(0)]), shown[0])


def test_a_token_merged_into_another_image_has_a_target_and_no_place_in_its_own():
    """Oracle: by hand. Everything goes into the first token of the first image; the last image keeps its last one."""
    model, inputs = model_of("llava"), tiny.batch("llava", "two_images", torch.float32)

    class IntoTheFirst(Chance):
        def select(self, tokens):
            merge = torch.zeros(len(tokens), dtype=torch.int64)
            merge[-1] = 1
            return Selection(torch.tensor([0, len(tokens) - 1]), merge)

    with vtprune.pruned(model, IntoTheFirst(BEFORE_LLM)) as report:
        answer(model, inputs, 1)
        first, second = report.kept(0)
    assert first.into.tolist() == [0] * 16 and first.target.tolist() == [0] * 16
    assert second.into.tolist() == [-1] * 15 + [0] and second.target.tolist() == [0] * 15 + [31]


def test_stand_ins_by_hand():
    keep = torch.tensor([1, 3])
    assert stand_ins(keep, None, 5).tolist() == [-1, 0, -1, 1, -1]
    # column 0: a tie, the lower row wins; 1: row 1 alone; 2: the larger; 3: nothing, but kept; 4: negative alone
    plan = torch.tensor([[0.4, 0.0, 0.6, 0.0, 0.0], [0.4, 0.5, 0.7, 0.0, -0.6]]).to_sparse()
    assert stand_ins(keep, plan, 5).tolist() == [0, 1, 1, 1, -1]
