"""AS-ViT's score, against the released code's results, a worked example and a CLIP tower's own maps and outputs."""

import json

import pytest
import torch

import vtprune
from tests import tiny
from vtprune.attention import Call
from vtprune.families.base import family_of
from vtprune.policies.asvit import ASViT
from vtprune.policies.base import POLICIES, ScorePolicy
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune.vision_signals import head_weighted_rows, weighted_heads

FACTS = ModelFacts("some", depth=4, width=8, class_token=True, line_positions=True, tower_layers=24)
READERS = (
    "visionzip",
    "fastervlm",
    "vispruner",
    "scope",
    "vtc_cls",
    "hired",
    "holov",
    "globalcom2",
    "prumerge",
    "idpruner",
)


def attended(case):
    """The queries, keys and values (B, H, N, d) of a golden case."""
    x, weight, bias = (torch.tensor(case[name]) for name in ("x", "qkv_w", "qkv_b"))
    qkv = (x @ weight.T + bias).unflatten(-1, (3, case["num_heads"], -1))
    return qkv.permute(2, 0, 3, 1, 4)


def masked_maps(query, key, mask):
    """(B, H, N, N): the softmax of the publication's training, where masked tokens are seen by themselves alone."""
    logit = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    n = logit.shape[-1]
    keep = mask[:, None, None] + (1 - mask[:, None, None]) * torch.eye(n)
    power = (logit - logit.amax(-1, keepdim=True)).exp() * keep
    return (power + 1e-6 / n) / (power.sum(-1, keepdim=True) + 1e-6)


def test_released_results_are_met(golden):
    """Oracle: the authors' code; also under its masked softmax, of which the weights of heads are the same."""
    paths = sorted(golden("asvit").glob("case_*.json"))
    assert paths
    for path in paths:
        case = json.loads(path.read_text())
        query, key, value = attended(case)
        found = head_weighted_rows([Call(query, key, query.shape[-1] ** -0.5, value=value)]).mean(1)[:, 1:]
        expected = torch.tensor(case["score"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for score, wanted in zip(found, expected, strict=True):
            tokens = tokens_of(score[None, None], ASViT())
            k = int((wanted > wanted.median()).sum())
            assert ASViT(n_keep=k).select(tokens).keep.tolist() == (wanted > wanted.median()).nonzero()[:, 0].tolist()
        maps = masked_maps(query, key, torch.tensor(case["policy"])[..., 0])
        masked = weighted_heads(maps[:, :, 0], maps @ value).mean(1)[:, 1:]
        torch.testing.assert_close(masked, torch.tensor(case["score_masked"]), rtol=1e-4, atol=1e-5)


def tokens_of(rows, policy):
    """Visual tokens whose rows (layers, heads, N) are known."""
    n = rows.shape[-1]
    hidden = torch.zeros(n, 2)
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, n)),), {policy.class_signal: rows})


def test_worked_example():
    """Two heads that put out (5, 1) and (5, 3) in length: weights (.5, .5) and (.25, .75)."""
    row = torch.tensor([[[0.3, 0.3], [0.1, 0.7]]])
    out = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]], [[0.0, 5.0], [0.0, 3.0]]]])
    rows = weighted_heads(row, out)
    torch.testing.assert_close(rows.mean(1)[0], torch.tensor([0.2, 0.6]))
    assert ASViT(n_keep=1).select(tokens_of(rows, ASViT())).keep.tolist() == [1]
    twice = torch.cat([rows, rows.flip(-1)])
    torch.testing.assert_close(ASViT().score(tokens_of(twice, ASViT())), torch.full((2,), 0.8))


@torch.no_grad()
def test_a_wrapped_tower_gives_what_its_maps_and_outputs_say():
    """Oracle: eager maps of the layer times its projected values, head by head."""
    model, inputs = tiny.build("llava", "eager", torch.float32), tiny.batch("llava", "two_images", torch.float32)
    layer, seen = family_of(model).vision_layers(model)[-2], {}

    class Listen(ScorePolicy):
        needs = frozenset({"head_weighted_cls"})
        found = []

        def score(self, tokens):
            rows = tokens.signals["head_weighted_cls"]
            self.found.append(rows.mean((0, 1)))
            return self.found[-1]

    with vtprune.pruned(model, Listen(n_keep=3)):
        look = layer.register_forward_hook(lambda m, a, kwargs, out: seen.update(kwargs, maps=out[1]), with_kwargs=True)
        model(**inputs)
        look.remove()
    value = layer.v_proj(seen["hidden_states"]).unflatten(-1, (seen["maps"].shape[1], -1)).transpose(1, 2)
    length = (seen["maps"] @ value).norm(dim=-1)
    expected = (seen["maps"][:, :, 0] * length / length.sum(1, keepdim=True)).sum(1)[:, 1:]
    torch.testing.assert_close(torch.cat(Listen.found), expected.flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", READERS)
def test_every_policy_that_reads_the_class_token_takes_it(name):
    """Oracle: the need by its name, in the layers that the policy reads otherwise, and no other need changed."""
    option = "importance" if name == "idpruner" else "signal"
    usual = POLICIES[name]().fitted(FACTS)
    policy = POLICIES[name](**{option: "head_weighted_cls"}).fitted(FACTS)
    [before], [after] = usual.needs - policy.needs, policy.needs - usual.needs
    assert before.startswith("cls_") and after.partition(":")[0] == "head_weighted_cls"
    assert before.partition(":")[2] == after.partition(":")[2]
    model, inputs = tiny.build("llava", "sdpa", torch.float32), tiny.batch("llava", "ragged", torch.float32)
    options, kept = {"layers": (0, 1)} if name in ("hired", "vtc_cls") else {}, []
    for value in ("head_weighted_cls", "auto"):
        with vtprune.pruned(model, name, keep_ratio=0.4, **options, **{option: value}) as report:
            tiny.greedy(model, inputs, 1)
            kept.append([len(one) for one in report.sites[0].kept])
    assert kept[0] == kept[1]


def test_it_asks_for_its_layers_and_for_what_stands_in():
    assert ASViT().needs == ASViT().fitted(FACTS).needs == {"head_weighted_cls:-2"}
    assert ASViT(layers=[2, 3]).needs == {"head_weighted_cls:2,3"} and ASViT().positions == "compact"
    policy = ASViT().fitted(ModelFacts("some", depth=4, width=8, class_token=False, line_positions=True))
    assert policy.needs == {"vision_attention"} and policy.notes
    for wrong in ("-2", (), (True,), 3, (1.5,)):
        with pytest.raises(ValueError, match="layers") as error:
            ASViT(layers=wrong)
        assert repr(wrong) in str(error.value)
    with pytest.raises(ValueError, match="'cls'"):
        ASViT(signal="cls")
