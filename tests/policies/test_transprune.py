"""TransPrune, against the released code's results from embeddings to logits, worked examples and eager attention."""

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load, weights
from vtprune.policies.base import top_rows
from vtprune.policies.transprune import TransPrune
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune.transition import transition

# where the released scores were computed: scores to 1e-6, in bfloat16 to a unit in the last place of its parts
SCORES = {torch.float32: {"atol": 1e-6, "rtol": 1e-4}, torch.bfloat16: {"atol": 2e-3, "rtol": 0}}
HIDDEN = {torch.float32: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 5e-2, "rtol": 1e-4}}
SCHEDULE = {"layers": (1, 2, 3), "accumulate": (0, 1, 2), "of": None}


def cases(folder):
    paths = sorted(folder.glob("case*.npz"))
    assert paths
    return [(path.name, load(path)) for path in paths]


def policy_of(case, **more):
    """The schedule of a golden case, whose layers are counted from 1."""
    return TransPrune(
        keep_ratios=tuple(case["ratios"].tolist()),
        layers=tuple(case["prune"].tolist()),
        accumulate=tuple(layer - 1 for layer in case["accumulate"].tolist()),
        of=None,
        **more,
    )


def stage_tokens(case, stage, memory):
    """What the policy sees at a stage of a golden case; the text after the image is one row, its stored mean."""
    start, n = int(case["image_start"]), len(case[f"stage{stage}_iga"])
    hidden = case[f"stage{stage}_hidden_in"]
    policy = policy_of(case)
    [transitions] = [need for need in policy.needs if need.startswith("transition")]
    signals = {
        transitions: case[f"stage{stage}_ttv_list"][:, start : start + n],
        "text_attention:peek": case[f"stage{stage}_iga"].float()[None],
    }
    span = slice(start, start + n)
    return VisualTokens(
        hidden[span],
        hidden[start + n :],
        (Segment(slice(0, n)),),
        signals,
        site=policy.sites[stage],
        position=torch.arange(n) + start,
        text_position=torch.tensor([start + int(case["n_image"])]),
        memory=memory,
    )


def test_released_scores_and_choices_are_met_stage_by_stage(golden):
    """Oracle: the authors' code, from its transitions and attention to the kept tokens."""
    for name, case in cases(golden("transprune")):
        policy, memory, start = policy_of(case), {}, int(case["image_start"])
        for stage in range(int(case["n_stages"])):
            tokens = stage_tokens(case, stage, memory)
            keep = policy.select(tokens).keep
            score = policy.score(tokens, slice(0, len(tokens)), memory[0][1])
            expected = case[f"stage{stage}_score"]
            torch.testing.assert_close(score, expected.float(), **SCORES[tokens.hidden.dtype], msg=name)
            kept = [i - start for i in case[f"stage{stage}_keep"].tolist() if start <= i < start + len(tokens)]
            assert keep.tolist() == kept, (name, stage)


def llava_with(case):
    """A LLaVA around the stored LLaMA. Text tokens are ids 50.. of an embedding table made of the stored embeddings,
    the image's come out of a projector that is told what to say."""
    embeds, state = case["inputs_embeds"][0], weights(case)
    start, n = int(case["image_start"]), int(case["n_image"])
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("model.layers."))
    words = len(embeds) + 50
    text = LlamaConfig(
        vocab_size=words + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=words, image_seq_length=4)
    model = LlavaForConditionalGeneration(config).eval()
    # rotary frequencies stay in single precision, as in a model that was loaded in another
    frequencies = model.model.language_model.rotary_emb.inv_freq.clone()
    model.to(embeds.dtype).model.language_model.rotary_emb.inv_freq = frequencies
    decoder = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.layers") or "norm" in k}
    decoder["embed_tokens.weight"] = torch.cat([torch.zeros(50, 32), embeds.float(), torch.zeros(1, 32)])
    model.model.language_model.load_state_dict(decoder)
    with torch.no_grad():
        model.lm_head.weight[:50] = state["lm_head.weight"]
        model.lm_head.weight[50:] = 0
    model.model.multi_modal_projector.register_forward_hook(lambda *_: embeds[None, start : start + n])
    ids = torch.arange(50, words)[None]
    ids[:, start : start + n] = words
    return model, {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 8, 8, dtype=embeds.dtype)}


@torch.no_grad()
def test_released_results_are_met_through_wrap_and_generate(golden):
    """Oracle: the authors' code in its own model: kept columns at each stage, last hidden states, logits."""
    whole = [(name, case) for name, case in cases(golden("transprune")) if weights(case)]
    if not whole:
        pytest.skip("the cases that are there have no weights")
    for name, case in whole:
        model, inputs = llava_with(case)
        start = int(case["image_start"])
        vtprune.wrap(model, policy_of(case))
        final = {}
        model.model.language_model.norm.register_forward_hook(
            lambda module, args, out, final=final: final.setdefault("hidden", out)
        )
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        n, orig = int(case["n_image"]), None
        for stage, record in enumerate(vtprune.report(model).sites):
            orig = case[f"stage{stage}_orig_kept"].tolist()
            assert (record.kept[0] + start).tolist() == [i for i in orig if start <= i < start + n], (name, stage)
        dtype = case["inputs_embeds"].dtype
        torch.testing.assert_close(final["hidden"][:, orig], case["final_hidden"], **HIDDEN[dtype])
        got = out.logits[0][:, :50]
        torch.testing.assert_close(got.float(), case["logits_last"].float(), **HIDDEN[dtype])


def test_worked_example_of_a_transition():
    """(1, 0) -> (0, 1) turns by a right angle at full size, (0, 2) -> (0, -1) turns round at half size."""
    x, out = torch.tensor([[[1.0, 0], [0, 2]]]), torch.tensor([[[0.0, 1], [0, -1]]])
    real = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(transition(x, out, real), torch.tensor([[0.2689, 0.3655]]), atol=1e-4, rtol=0)
    unsigned = transition(x, out, real, unsigned=True)
    torch.testing.assert_close(unsigned, torch.tensor([[0.7311, 0.1345]]), atol=1e-4, rtol=0)


def made_up(transitions, attention, **more):
    n = len(transitions)
    policy = TransPrune(keep_ratios=(0.5,), layers=(2,), accumulate=(1,), of=None, **more)
    signals = {policy._transition: torch.tensor([transitions]), "text_attention:peek": torch.tensor([attention])}
    return policy, VisualTokens(
        torch.zeros(n, 2),
        torch.zeros(1, 2),
        (Segment(slice(0, n)),),
        {name: value for name, value in signals.items() if name in policy.needs},
        site=2,
        position=torch.arange(n),
        text_position=torch.tensor([n]),
    )


def test_worked_example_of_a_score():
    policy, tokens = made_up((0.03, 0.04, 0.04, 0.02), (0.005, 0.001, 0.002, 0.008))
    expected = torch.tensor([0.5433, 0.3702, 0.4327, 0.6538])
    torch.testing.assert_close(policy.score(tokens, slice(0, 4), 3), expected, atol=1e-4, rtol=0)
    assert policy.select(tokens).keep.tolist() == [0, 3]


@pytest.mark.parametrize(("criteria", "keep"), [("transition", [1, 2]), ("attention", [0, 3])])
def test_each_criterion_stands_alone(criteria, keep):
    policy, tokens = made_up((0.03, 0.04, 0.04, 0.02), (0.005, 0.001, 0.002, 0.008), criteria=criteria)
    assert len(policy.needs) == 1
    assert policy.select(tokens).keep.tolist() == keep


@pytest.mark.parametrize(
    ("n", "ratios", "counts"),
    [(576, (0.875, 0.625, 0.125), [504, 360, 72]), (100, (0.875, 0.625, 0.125), [87, 62, 12]), (30, (0.333,), [9])],
)
def test_counts_are_cut_off_from_the_original_count(n, ratios, counts):
    layers = (7, 9, 12)[: len(ratios)]
    policy, memory, alive = TransPrune(keep_ratios=ratios, layers=layers, criteria="attention"), {}, n
    for site, count in zip(policy.sites, counts, strict=True):
        tokens = VisualTokens(
            torch.zeros(alive, 2),
            torch.zeros(1, 2),
            (Segment(slice(0, alive)),),
            {"text_attention:peek": torch.rand(1, alive)},
            site=site,
            position=torch.arange(alive),
            text_position=torch.tensor([n]),
            memory=memory,
        )
        alive = len(policy.select(tokens).keep)
        assert alive == count


@pytest.mark.parametrize(
    ("depth", "layers", "accumulate"),
    [(32, (7, 9, 12), (6, 7, 8, 9, 10, 11)), (64, (14, 18, 24), (13, 15, 17, 19, 21, 23)), (2, (1,), (0,))],
)
def test_stages_are_fractions_of_depth(depth, layers, accumulate):
    fitted = TransPrune().fitted(ModelFacts("llava", depth, 8, True, True))
    assert (fitted.layers, fitted.accumulate) == (layers, accumulate)
    assert fitted.keep_ratios[-1] == 0.125 and len(fitted.keep_ratios) == len(layers)
    assert fitted.fitted(ModelFacts("llava", 5, 8, True, True)) is fitted


@pytest.mark.parametrize("depth", range(2, 90))
def test_stages_fit_any_depth(depth):
    fitted = TransPrune().fitted(ModelFacts("llava", depth, 8, True, True))
    assert 1 <= fitted.layers[0] and fitted.layers[-1] < depth
    assert 0 <= fitted.accumulate[0] < fitted.layers[0] and fitted.accumulate[-1] == fitted.layers[-1] - 1
    assert abs(fitted.layers[-1] - 12 / 32 * depth) <= 1


def test_one_keep_ratio_takes_all_stages_along():
    """Oracle: the powers, by hand: 1/64 is the square of 1/8."""
    policy = TransPrune(keep_ratio=1 / 64)
    assert [policy.kept_at(i) for i in range(3)] == pytest.approx([0.875**2, 0.625**2, 0.125**2])
    assert [TransPrune(keep_ratio=1).kept_at(i) for i in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": (9, 7, 12)}, r"layers .*\(9, 7, 12\)"),
        ({"layers": (0, 9, 12)}, r"1 or more; got \(0, 9, 12\)"),
        ({"layers": "7"}, "layers .*'7'"),
        ({"accumulate": ()}, r"accumulate .*\(\)"),
        ({"accumulate": (7, 8)}, r"before layer 7, .*got \(7, 8\)"),
        ({"keep_ratios": (0.5,)}, r"one entry for each of layers=\(7, 9, 12\); got \(0.5,\)"),
        ({"keep_ratios": (0.5, 0.6, 0.1)}, r"fall; got \(0.5, 0.6, 0.1\)"),
        ({"keep_ratios": (1, 1, 1), "keep_ratio": 0.5}, "keep_ratio=0.5 cannot be reached"),
        ({"of": 12}, "of is the depth .*got 12"),
        ({"criteria": "ttv"}, "criteria is one of .*'ttv'"),
        ({"direction": "abs"}, "direction is one of .*'abs'"),
    ],
)
def test_wrong_options_are_refused_by_value(options, text):
    with pytest.raises(ValueError, match=text):
        TransPrune(**options)


def watched(model, layers):
    """Inputs and outputs of attention and MLP in some layers, by hooks of the test's own."""
    seen, handles = {}, []
    for i in layers:
        layer = tiny.text_model(model).layers[i]
        for part, module in (("attention", layer.self_attn), ("mlp", layer.mlp)):

            def hook(module, args, kwargs, out, key=(i, part)):
                x = args[0] if args else kwargs["hidden_states"]
                seen[key] = x, out[0] if isinstance(out, tuple) else out

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    return seen, handles


def by_hand(model, inputs, b, columns):
    """The first stage's score of a sample's visual ``columns``, from eager attention maps and watched modules."""
    seen, handles = watched(model, (0,))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs, **oracle.positions(inputs), output_attentions=True, use_cache=False)
    model.set_attn_implementation("sdpa")
    for handle in handles:
        handle.remove()
    real = inputs["attention_mask"][b].bool()
    total = torch.zeros(len(columns), dtype=torch.float64)
    for x, y in seen.values():
        x, y = x[b][real].double(), y[b][real].double()
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        turn = (1 - cosine).exp()
        change = torch.zeros(len(real), dtype=torch.float64)
        change[real] = y.norm(dim=-1) / x.norm(dim=-1) * turn / turn.sum()
        total += change[columns]
    text = [i for i in range(int(columns[-1]) + 1, len(real)) if real[i] and not tiny.visual(inputs)[b, i]]
    attention = out.attentions[1][b, :, text][:, :, columns].double().mean((0, 1))
    return total / total.sum() + attention / attention.sum()


@pytest.mark.parametrize("kind", ["one", "padded"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "internvl", "video_llava"])
def test_the_first_stage_is_what_eager_attention_and_watched_modules_say(family, kind):
    """Oracle: the formula in float64 on attention maps and module outputs of the unpruned model (grouped heads)."""
    model, inputs = tiny.build(family, dtype=torch.float32), tiny.batch(family, kind, torch.float32)
    policy = TransPrune(keep_ratios=(0.5, 0.4, 0.3), **SCHEDULE)
    with vtprune.pruned(model, policy) as report, torch.no_grad():
        model(**inputs, **oracle.positions(inputs))
        first, layout = report.sites[0], report.last.layout
    for b, row in enumerate(layout.rows):
        if len(row.sources) != 1:
            continue
        score = by_hand(model, inputs, b, row.columns)
        k = max(1, int(len(row.columns) * 0.5))
        assert first.kept[b].tolist() == top_rows(score, k).tolist(), (family, b)


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "paligemma"])
def test_a_batch_is_its_samples(family):
    """Oracle: every sample alone, in every kind of batch."""
    model = tiny.build(family)

    def run(inputs):
        with vtprune.pruned(model, TransPrune(keep_ratios=(0.8, 0.5, 0.3), **SCHEDULE)):
            return oracle.text_logits(model, inputs)

    for kind in ("padded", "ragged"):
        oracle.assert_batch_equals_rows(run, family, tiny.samples(family, kind))


def test_two_images_have_a_budget_each():
    """Oracle: the counts by the rule, of each image; pooled, of both together."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "two_images")
    for budget in ("segment", "prompt"):
        with vtprune.pruned(model, TransPrune(keep_ratios=(0.8, 0.5, 0.3), budget=budget, **SCHEDULE)) as report:
            tiny.greedy(model, inputs, 2)
            for site, ratio in enumerate((0.8, 0.5, 0.3)):
                kept = report.kept(0, site)
                assert len(kept) == 2
                if budget == "segment":
                    assert [len(one.rows) for one in kept] == [int(one.of * ratio) for one in kept]
                else:
                    assert sum(len(one.rows) for one in kept) == int(sum(one.of for one in kept) * ratio)


def test_a_static_cache_changes_nothing():
    """Oracle: the dynamic cache."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, TransPrune(keep_ratios=(0.8, 0.5, 0.3), **SCHEDULE)) as report:
        expected = tiny.greedy(model, inputs, 5).sequences
        kept = [record.kept for record in report.sites]
        got = tiny.greedy(model, inputs, 5, cache_implementation="static").sequences
        again = [record.kept for record in report.sites]
    assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for x, y in zip(kept, again) for a, b in zip(x, y))


def test_newlines_compete_unless_they_are_protected():
    """Oracle: the count of newline tokens in the layout."""
    model, inputs = tiny.build("llava_next"), tiny.batch("llava_next", "one")
    for newlines in (True, False):
        with vtprune.pruned(model, TransPrune(newlines=newlines, **SCHEDULE)) as report:
            tiny.greedy(model, inputs, 1)
            row = report.last.layout.rows[0]
            assert not row.patch.all()
            assert report.sites[0].before == [len(row.columns) if newlines else int(row.patch.sum())]


def test_mrope_models_keep_their_positions_and_say_so():
    model = vtprune.wrap(tiny.build("qwen2_vl"), "transprune")
    assert any("positions stay original" in note for note in vtprune.report(model).notes)
    assert not vtprune.report(vtprune.wrap(tiny.build("llava"), "transprune")).notes


def test_a_model_without_an_mlp_by_a_known_name_is_refused():
    from vtprune.parts import mlp_of

    with pytest.raises(NotImplementedError, match="cannot find the MLP in Linear"):
        mlp_of(nn.Linear(2, 2))
