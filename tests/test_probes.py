"""Probe rows and the signal probe_attention, against eager attention."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import Look
from vtprune.blocks.probe_rows import ALL, Probes, probe_rows
from vtprune.signals import parse


def test_probe_rows_are_the_last_and_some_of_the_others():
    rows = probe_rows(300, Probes(64, 64, 3), "salt").tolist()
    assert rows[64:] == list(range(236, 300)) and len(set(rows[:64])) == 64
    assert rows[:64] == sorted(rows[:64]) and 0 <= rows[0] and rows[63] < 236
    assert probe_rows(300, Probes(64, 64, 3), "salt").tolist() == rows
    assert probe_rows(300, Probes(64, 64, 4), "salt").tolist() != rows != probe_rows(300, Probes(64, 64, 3)).tolist()
    for n in (1, 127, 128):
        assert probe_rows(n, Probes(64, 64)).tolist() == list(range(n))
    assert probe_rows(10, Probes(0, 3)).shape == (3,) and probe_rows(10, Probes(3, 0)).tolist() == [7, 8, 9]
    assert len(probe_rows(1000, ALL)) == 1000


def test_needs_say_which_rows():
    assert parse("probe_attention").probes == Probes(64, 64, 0)
    need = parse("probe_attention:peek@3,4,5")
    assert (need.where, need.probes, need.kind) == ("peek", Probes(3, 4, 5), "rows")
    assert parse("probe_attention:2@all").probes == ALL and parse(f"probe_attention@{ALL}").probes == ALL
    for wrong in ("probe_attention@", "probe_attention@some", "probe_attention@-1,4,0", "probe_attention@0,0,0"):
        with pytest.raises(ValueError, match=f"cannot read '{wrong}'.*@64,64,0"):
            parse(wrong)
    with pytest.raises(ValueError, match="unknown signal 'keys@all'"):
        parse("keys@all")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "llava_next"])
def test_the_signal_is_eager_attention_summed(family, monkeypatch):
    """Oracle: attention maps of the unpruned model, and how many of a column's entries are not 0. gemma3 has a window
    in layer 0, and images that see their later tokens."""
    inputs = tiny.batch(family, "ragged", torch.float32)
    eager = tiny.build(family, "eager", torch.float32)
    maps = eager(**inputs, **oracle.positions(inputs), output_attentions=True, use_cache=False).attentions
    look = Look(
        "probe_attention@all", "probe_attention:peek@all", "probe_attention@5,0,0", "probe_attention:peek@3,4,9"
    )
    monkeypatch.setattr("vtprune.probes.CHUNK", 11)  # several of them in these short prompts
    model = tiny.build(family, "sdpa", torch.float32)
    with vtprune.pruned(model, look):
        model(**inputs, **oracle.positions(inputs))
    assert len(look.seen) == 4
    for b, (tokens, seen) in enumerate(look.seen[:2]):
        real = inputs["attention_mask"][b].nonzero().flatten()
        columns = tokens.position + real[0]
        for name, found in seen.items():
            need = parse(name)
            rows = real if need.probes == ALL else real[probe_rows(len(real), need.probes, tokens.seed, 1)]
            if need.probes == Probes(5, 0, 0):
                rows = real[-5:]
            rows = maps[1 if need.where == "peek" else 0][b][:, rows][..., columns].double()
            torch.testing.assert_close(found[0].double(), rows.mean(0).sum(0), atol=1e-5, rtol=0)
            assert found[1].tolist() == (rows[0] > 0).sum(0).tolist()


@torch.no_grad()
def test_behind_a_cut_the_rows_are_those_that_are_left():
    """Oracle: a batch of two is two of one, at the second site too, where samples have unequal counts."""
    model, need = tiny.build("llava"), "probe_attention:peek@4,6,1"

    def run(inputs):
        look = Look(need, "probe_attention@all")
        with vtprune.pruned(model, look):
            model(**inputs, **oracle.positions(inputs))
        half = len(look.seen) // 2
        return [
            torch.cat([look.seen[i + b][1][name].flatten() for i in (0, half) for name in look.needs])
            for b in range(half)
        ]

    oracle.assert_batch_equals_rows(run, "llava", tiny.samples("llava", "ragged"), 1e-6)
