"""SparseVLM, against the released code's results from embeddings to hidden states, worked examples and plain loops."""

import math

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample, serve
from tests.policies.golden import load
from tests.policies.golden_llava import run
from vtprune.blocks.peak_clusters import peak_clusters
from vtprune.blocks.raters import raters
from vtprune.policies.sparsevlm import BUDGETS, SparseVLM
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, VisualTokens
from vtprune_kernels.merge import merge_tokens


def cases(golden, kind):
    paths = sorted(golden("sparsevlm").glob(f"{kind}*.npz"))
    if not paths:
        pytest.skip(f"no golden case of this method is called {kind}")
    return [(path.name, load(path)) for path in paths]


def merged(x, k):
    return merge_tokens(x, peak_clusters(x, k, k)[1], None, k)


def test_released_merges_are_met(golden):
    """Oracle: the authors' code."""
    for name, case in cases(golden, "cluster"):
        found = merged(case["x"], int(case["clusters"]))
        torch.testing.assert_close(found, case["merged"], atol=1e-5, rtol=1e-5, msg=name)


def test_released_raters_and_choices_are_met(golden):
    """Oracle: the authors' code, from raw embeddings and the attention of its raters to what is kept."""
    for name, case in cases(golden, "keep"):
        n, text, quota = int(case["n_image"]), case["text_embeds"], int(case["quota"])
        span, memory = (Segment(slice(0, n)),), {}
        policy = SparseVLM(n_keeps=(quota,), layers=(3,), recycled=0.0, compat="released-min-drop")
        place = {"position": torch.arange(n), "text_position": n + torch.arange(len(text)), "memory": memory}
        policy.select(VisualTokens(case["vision_embeds"], text, span, site=BEFORE_LLM, **place))
        assert memory["sparsevlm raters"].tolist() == case["raters"].tolist(), name
        rows = torch.full((len(text), n), torch.nan)
        rows[case["raters"]] = case["rater_rows"].mean(0)
        torch.testing.assert_close(rows[case["raters"]].mean(0), case["score"], atol=1e-7, rtol=1e-4)
        seen = VisualTokens(case["vision_embeds"], text, span, {"text_attention": rows}, site=3, **place)
        assert policy.select(seen).keep.tolist() == case["keep"].tolist(), name


class Watched(SparseVLM):
    """Remembers what each stage kept as it is, counted in the current run of visual tokens."""

    def _part(self, tokens, pool, k, score):
        part = super()._part(tokens, pool, k, score)
        self.seen = [*getattr(self, "seen", []), part.rows[:k].tolist()]
        return part


def test_released_prefills_are_met_through_wrap_and_generate(golden):
    """Oracle: the authors' code in its own model: raters, choices, caches and what comes out of the last norm. A layer
    that adds nothing follows its last one, behind which it cuts."""
    for name, case in cases(golden, "prefill"):
        layers = tuple(loc + 1 for loc in case["locs"].tolist())
        policy = Watched(n_keeps=tuple(case["quotas"].tolist()), layers=layers, of=None, compat="released-tie-order")
        policy.fitted = lambda facts, policy=policy: policy
        kept, lengths, hidden = run(case, policy, idle_layers=1)
        assert [len(rows) for rows in kept[1:]] == case["visual_after"].tolist(), name
        assert lengths[:-1] == case["kv_lengths"].tolist()
        assert policy.seen == [case[f"keep_stage{stage}"].tolist() for stage in range(3)]
        torch.testing.assert_close(hidden, case["final_hidden"], atol=1e-4, rtol=1e-4, msg=name)


def test_of_equal_peaks_the_lowest_is_the_first_unless_asked():
    """Two pairs of twins: with two neighbours every row is as dense as its twin."""
    x = torch.tensor([[0.0], [0.0], [7.0], [7.0]])
    assert peak_clusters(x, 2, 2)[0].tolist() == [0, 1]
    assert peak_clusters(x, 2, 2, ties="highest")[0].tolist() == [3, 2]


def test_worked_example_of_raters():
    visual, text = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[2.0, 0], [0, 0], [0, 1]])
    assert raters(visual, text).tolist() == [0]


def test_raters_that_do_not_stand_out_all_rate():
    assert raters(torch.ones(5, 2), torch.ones(1, 2)).tolist() == [0]
    assert raters(torch.zeros(3, 2), torch.randn(4, 2)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_raters_of_many_tokens_are_those_of_the_formula(dtype):
    """Oracle: the whole matrix at once, in float64; 2500 tokens are more than are looked at at a time."""
    generator = torch.Generator().manual_seed(4)
    visual, text = (torch.randn(n, 8, generator=generator).to(dtype) for n in (2500, 12))
    share = (visual.double() @ text.double().T).softmax(1).mean(0)
    assert raters(visual, text).tolist() == (share > 1 / 12).nonzero().flatten().tolist()


def test_worked_example_of_merges():
    """Mean squares of the three smallest distances, by hand: 8.57, 6.81, 6.74, 8.17 and 15.5. So (5, 5) is densest,
    (0, 1.2) next and 4.4 away from it; (5, 6), 0.7 from (5, 5), is denser than (0, 0), 0.8 from (0, 1.2)."""
    x = torch.tensor([[0.0, 0], [0, 1.2], [5, 5], [5, 6], [9, 0]])
    torch.testing.assert_close(merged(x, 3), torch.tensor([[7, 2.5], [0, 0.6], [5, 6]]))


def by_hand(x, score, k, c_of):
    """One stage of a single image by a plain loop: kept rows, recycled rows by cluster, clusters in their order."""
    ranked = sorted(range(len(x)), key=lambda i: (-score[i], i))
    kept, rest = sorted(ranked[:k]), ranked[k:]
    t = int(0.3 * len(rest)) + 1
    pool, c = rest[:t], c_of(t)
    D = [[math.dist(x[a], x[b]) / math.sqrt(len(x[0])) for b in pool] for a in pool]
    rho = [math.exp(-sum(sorted(d * d for d in row)[:c]) / c) for row in D]
    top = max(map(max, D))
    delta = [min([D[i][j] for j in range(t) if rho[j] > rho[i]], default=top) for i in range(t)]
    centres = sorted(range(t), key=lambda i: (-rho[i] * delta[i], i))[:c]
    owner = [
        min(range(c), key=lambda j: (i != centres[j], D[i][centres[j]]))
        if i in centres
        else min(range(c), key=lambda j: D[i][centres[j]])
        for i in range(t)
    ]
    groups = [[pool[i] for i in range(t) if owner[i] == j] for j in range(c)]
    return kept, [pool[i] for i in centres], groups


@pytest.mark.parametrize("place", ["end", "centre"])
def test_a_stage_is_the_plain_loop(place):
    """Oracle: the published formulas in plain Python, and the mean of every group at its centre or at the end."""
    generator = torch.Generator().manual_seed(11)
    x, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((90, 5), (4, 90)))
    tokens = VisualTokens(
        x,
        x[:4],
        (Segment(slice(0, 90)),),
        {"text_attention": rows},
        site=3,
        memory={"sparsevlm raters": torch.tensor([1, 3])},
    )
    selection = SparseVLM(n_keeps=(20, 20, 20), place=place).select(tokens)
    kept, centres, groups = by_hand(x.tolist(), ((rows[1] + rows[3]) / 2).tolist(), 20, lambda t: t // 10 + 1)
    assert len(groups) == 3 and sum(map(len, groups)) == 22
    assert selection.keep.tolist() == sorted(kept + centres)
    means = [x[group].mean(0) for group in groups]
    if place == "end":
        torch.testing.assert_close(selection.values, torch.stack([*x[kept], *means]))
        return
    for j, row in enumerate(selection.keep.tolist()):
        members = (selection.merge == j).nonzero().flatten().tolist()
        assert sorted(members) == (sorted(groups[centres.index(row)]) if row in centres else [row])
    assert int((selection.merge < 0).sum()) == 90 - 20 - 22


def test_what_stands_at_the_end_is_counted_by_where_it_came_from():
    """Oracle: where tokens stay at their centre. The first stages choose alike; rows that are reported are the same."""
    samples = [serve(SparseVLM(n_keeps=(9, 9, 9), place=place), Sample("image"))[1][1] for place in ("end", "centre")]
    assert samples[0].keep.tolist() == samples[1].keep.tolist()
    hidden = Sample("image").hidden()
    plain = merge_tokens(hidden, samples[1].merge, None, len(samples[1].keep))
    torch.testing.assert_close(samples[0].values.sum(0), plain.sum(0))


def blank(n):
    """Signals of both versions for one text token and ``n`` visual tokens."""
    nothing = torch.zeros(1, n)
    return {"text_attention": nothing, "text_attention_heads": nothing[None], "text_rotary": nothing + 1}


def counts(n, **options):
    """Tokens kept as they are, by stage; nothing is recycled."""
    policy, sizes, memory, alive = SparseVLM(recycled=0, **options), [], {}, n
    for site in policy.sites:
        x = torch.zeros(alive, 2)
        place = {"position": torch.arange(alive), "text_position": torch.tensor([n])}
        tokens = VisualTokens(
            x,
            x[:1],
            (Segment(slice(0, alive)),),
            blank(alive),
            site,
            memory=memory,
            **place,
        )
        alive = len(policy.select(tokens).keep)
        sizes.append(alive)
    return sizes[1:]


@pytest.mark.parametrize("budget", [64, 96, 128, 192])
def test_published_budgets_are_met_exactly(budget):
    """Oracle: the published tables; of twice as many tokens twice as many."""
    table = {64: [66, 30, 17], 96: [238, 48, 26], 128: [303, 110, 36], 192: [300, 200, 110]}[budget]
    assert counts(576, keep_ratio=budget / 576) == table
    assert counts(1152, keep_ratio=budget / 576) == [2 * k for k in table]
    table = {64: [66, 34, 20], 96: [246, 54, 28], 128: [238, 108, 60], 192: [300, 200, 118]}[budget]
    assert counts(576, keep_ratio=budget / 576, version="plus") == table
    mean = {64: 81.8, 96: 113.9, 128: 144.1, 192: 206.8}[budget]
    assert (576 * 3 + table[0] * 4 + table[1] * 9 + table[2] * 16) / 32 == pytest.approx(mean, abs=0.051)


def test_budgets_between_lie_between_and_none_is_192():
    assert counts(576) == [300, 200, 110] and counts(576, keep_ratio=1.0) == [576] * 3
    assert counts(576, keep_ratio=160 / 576) == [302, 155, 73]  # 301.5 rounds to even
    assert counts(576, keep_ratio=32 / 576) == [33, 15, 8]
    assert counts(1, keep_ratio=0.01) == [1, 1, 1]
    assert all(set(table) == {0, 64, 96, 128, 192, 576} for table in BUDGETS.values())


def test_true_means_over_32_layers_are_those_of_the_publication_with_recycling():
    """Oracle: the means that the tables were worked out to have: 206.5, 145.4, 114.1 and 82.2 of 576."""
    for budget, mean in ((192, 206.5), (128, 145.4), (96, 114.1), (64, 82.2)):
        policy, alive, total = SparseVLM(keep_ratio=budget / 576), 576, 0
        for site, layers in ((3, 3), (7, 4), (16, 9), (None, 16)):
            total += alive * layers
            if site:
                tokens = VisualTokens(
                    torch.randn(alive, 4, generator=torch.Generator().manual_seed(site)),
                    torch.zeros(1, 4),
                    (Segment(slice(0, alive)),),
                    {"text_attention": torch.rand(1, alive)},
                    site=site,
                    memory={"stages": {0: 576}, "sparsevlm raters": torch.tensor([0])},
                )
                alive = len(policy.select(tokens).keep)
        assert abs(total / 32 - mean) <= 0.05


@pytest.mark.parametrize(("compat", "least"), [("", 1.0), ("", 0.3), ("released-plus", 1.0)])
@pytest.mark.parametrize("n_heads", [4, 17])
def test_plus_divides_by_distance_and_counts_the_heads_that_look_most(n_heads, compat, least):
    """Oracle: plain loops over heads, raters and tokens. Some numbers are negative, others between the limits."""
    generator = torch.Generator().manual_seed(n_heads)
    paid = torch.rand(n_heads, 5, 30, generator=generator).double()
    prior = torch.randn(5, 30, generator=generator).double() * 2 + 1
    chosen, divided = [0, 3, 4], []
    for head in paid.tolist():
        rows = [
            [p / (w if compat else max(w, least)) for p, w in zip(head[r], prior[r].tolist(), strict=True)]
            for r in chosen
        ]
        divided.append([sum(column) for column in zip(*rows, strict=True)])
    heads = sorted(divided, key=lambda head: -sum(head))[:14]
    score = [sum(head[i] for head in heads) for i in range(30)]
    x = torch.zeros(30, 2)
    signals = {"text_attention_heads": paid, "text_rotary": prior}
    memory = {"sparsevlm raters": torch.tensor(chosen)}
    tokens = VisualTokens(x, x[:5], (Segment(slice(0, 30)),), signals, site=3, memory=memory)
    policy = SparseVLM(n_keeps=(9, 9, 9), version="plus", least_prior=least, compat=compat)
    selection = policy.select(tokens)
    assert selection.keep.tolist() == sorted(sorted(range(30), key=lambda i: -score[i])[:9])
    assert not selection.changes


def test_text_after_the_last_image_rates_all_images():
    """Two images with text between: that text is as like them as the text behind, and has no say."""
    x, text = torch.eye(4), torch.ones(3, 4)
    policy, memory = SparseVLM(n_keeps=(1,), layers=(1,), recycled=0.0), {}
    segments = (Segment(slice(0, 2), source=0), Segment(slice(2, 4), source=1))
    place = {"position": torch.tensor([0, 1, 3, 4]), "text_position": torch.tensor([2, 5, 6]), "memory": memory}
    policy.select(VisualTokens(x, text, segments, site=BEFORE_LLM, **place))
    rows = torch.tensor([[9.0, 0, 9, 0], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    assert policy.select(VisualTokens(x, text, segments, {"text_attention": rows}, site=1, **place)).keep.tolist() == [
        1,
        3,
    ]


def test_a_prompt_that_ends_with_its_image_is_rated_by_any_text():
    x, memory = torch.zeros(4, 2), {}
    place = {"position": torch.arange(2, 6), "text_position": torch.arange(2), "memory": memory}
    policy = SparseVLM(n_keeps=(1,), layers=(1,))
    policy.select(VisualTokens(x, x[:2], (Segment(slice(0, 4)),), site=BEFORE_LLM, **place))
    assert memory["sparsevlm raters"].tolist() == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "version"), [("llava", "1"), ("qwen2_5_vl", "1"), ("internvl", "1"), ("llava", "plus")]
)
def test_the_first_stage_is_what_eager_attention_says(family, version):
    """Oracle: embeddings and attention maps of the unpruned eager model, of every sample of a padded batch; for
    "plus" the distances of the columns and Llama's frequencies."""
    model, inputs = tiny.build(family, dtype=torch.float32), tiny.batch(family, "padded", torch.float32)
    policy = SparseVLM(n_keeps=(5,), layers=(2,), of=None, recycled=0.0, version=version)
    with vtprune.pruned(model, policy) as report:
        model(**inputs, **oracle.positions(inputs))
        kept, rows = report.sites[1].kept, report.last.layout.rows
    model.set_attn_implementation("eager")
    out = model(
        **inputs, **oracle.positions(inputs), output_attentions=True, output_hidden_states=True, use_cache=False
    )
    for b, row in enumerate(rows):
        last, x = int(row.columns[-1]), out.hidden_states[0][b]
        behind = [i for i in range(last + 1, x.shape[0]) if row.real[i]]
        share = (x[row.columns] @ x[behind].T).softmax(1).mean(0)
        chosen = [i for i, s in zip(behind, share.tolist(), strict=True) if s > 1 / len(behind)]
        paid = out.attentions[1][b, :, chosen][:, :, row.columns]
        if version == "plus":
            distance = torch.tensor(chosen)[:, None] - row.columns
            angle = distance[..., None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16)
            paid = paid / (2 / 4 * angle.cos().sum(-1)).clamp(min=1)
        score = paid.mean((0, 1))
        assert kept[b].tolist() == sorted(score.sort(descending=True).indices[:5].tolist())


@pytest.mark.parametrize(("family", "version"), [("llava", "1"), ("qwen2_vl", "1"), ("qwen2_vl", "plus")])
def test_a_batch_is_its_samples_and_generates(family, version):
    """Oracle: every sample alone; of 16 and fewer tokens some are merged at both stages."""
    model, policy = tiny.build(family), SparseVLM(n_keeps=(9, 4), layers=(1, 2), of=None, version=version)

    def logits(inputs):
        with vtprune.pruned(model, policy) as report:
            found = oracle.text_logits(model, inputs)
            assert all(after < before for before, after in report.tokens)
        return found

    oracle.assert_batch_equals_rows(logits, family, tiny.samples(family, "ragged"))
    inputs = tiny.batch(family, "ragged")
    with vtprune.pruned(model, policy):
        tokens = tiny.greedy(model, inputs, 4).sequences
        assert torch.equal(tiny.greedy(model, inputs, 4, cache_implementation="static").sequences, tokens)


def test_it_fits_itself_to_the_model():
    fitted = SparseVLM().fitted(ModelFacts("llava", 32, 8, True, True))
    assert fitted.sites == (BEFORE_LLM, 3, 7, 16) and fitted.place == "end" and fitted.positions == "compact"
    assert SparseVLM(version="plus").fitted(ModelFacts("llava", 32, 8, True, True)).positions == "original"
    fitted = SparseVLM().fitted(ModelFacts("qwen2_vl", 28, 8, False, False))
    assert fitted.sites == (BEFORE_LLM, 3, 6, 14) and fitted.place == "centre"
    fitted = SparseVLM().fitted(ModelFacts("llava", 4, 8, True, True))
    assert fitted.sites == (BEFORE_LLM, 1, 2) and fitted.fitted(ModelFacts("llava", 4, 8, True, True)) == fitted


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_keeps": (3, 2)}, r"n_keeps .* layers=\(3, 7, 16\); got \(3, 2\)"),
        ({"n_keeps": (3, 2, 0)}, r"n_keeps .*got \(3, 2, 0\)"),
        ({"n_keeps": (3, 2, 1), "keep_ratio": 0.5}, "not both; got keep_ratio=0.5"),
        ({"layers": (3, 7)}, r"give n_keeps; got \(3, 7\)"),
        ({"recycled": 1.5}, "recycled .*got 1.5"),
        ({"per_cluster": 0}, "per_cluster .*got 0"),
        ({"place": "start"}, "place is one of .*'start'"),
        ({"compat": "released"}, "compat takes 'released-min-drop'.*'released'"),
        ({"version": "2"}, "version is one of '1', 'plus'; got '2'"),
        ({"version": "plus", "recycled": 0.3}, "merges nothing.*got 0.3"),
        ({"compat": "released-plus"}, "goes with version='plus'; got version='1'"),
        ({"least_prior": 0}, "least_prior .*above 0; got 0"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        SparseVLM(**options)
