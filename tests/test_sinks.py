"""What becomes of attention sinks in policies that rank by attention, and where their dimensions come from."""

import json
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.planted import DIM, TAU, plant, planted
from tests.probe import answer, visible
from vtprune import SinkDetector
from vtprune.families.base import FAMILIES, family_of
from vtprune.policies.base import POLICIES, cache_policies
from vtprune.signals import needed
from vtprune.sink_rule import unmerged
from vtprune.sink_table import CODE, PAPER, PUBLISHED, published_for

DETECTOR = SinkDetector((DIM,), tau=TAU)
SINKS = (2, 9, 12)
"""The planted tokens of every image of 16."""
RATIO = 0.5
MODES = ("ignore", "exclude", "drop", "keep")


@cache
def sunk(kind: str = "ragged"):
    """A LLaVA whose weights make sinks of some tokens of every image, and its inputs."""
    inputs = tiny.batch("llava", kind)
    return plant(tiny.build("llava", layers=5), inputs, SINKS), inputs


def options(mode: str, detector: SinkDetector = DETECTOR) -> dict:
    return {} if mode == "ignore" else {"sinks": mode, "sink_detector": detector}


@torch.no_grad()
def by_hand(mode: str, keep_ratio: float = RATIO) -> list[list[int]]:
    """What FastV keeps of every sample, by Python's sort of eager attention and NumPy's idea of a sink."""
    model, inputs = sunk()
    eager = tiny.build("llava", "eager", torch.float32, layers=5)
    eager.load_state_dict(model.state_dict())
    inputs = tiny.collate("llava", inputs.samples, torch.float32)
    out, kept = eager(**inputs, output_attentions=True, output_hidden_states=True), []
    for b, columns in enumerate(tiny.visual(inputs)):
        x = out.hidden_states[2][b, columns].numpy()
        massive = abs(x[:, DIM]) / (x**2).mean(-1) ** 0.5 > TAU
        attention = out.attentions[1][b, :, -1, columns].mean(0).tolist()
        rows = []
        for start in range(0, len(attention), 16):
            sign = {"keep": 1, "ignore": 0}.get(mode, -1)
            ranked = sorted((sign * int(massive[i]), attention[i], i) for i in range(start, start + 16))[::-1]
            rows += sorted(i for _, _, i in ranked[: round(16 * keep_ratio)])
        kept.append(rows)
    return kept


def fastv(mode: str, keep_ratio: float = RATIO) -> tuple[list[list[int]], list[str]]:
    model, inputs = sunk()
    with vtprune.pruned(model, "fastv", keep_ratio=keep_ratio, **options(mode)) as report:
        oracle.text_logits(model, inputs)
        return [rows.tolist() for rows in report.sites[0].kept], report.notes


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_keeps_what_it_says(mode):
    """Oracle: eager attention, sorted by hand. 8 of 16 stay of every image, whatever becomes of the sinks."""
    kept, notes = fastv(mode)
    assert kept == by_hand(mode)
    assert [len(rows) for rows in kept] == [8, 16]
    sinks = sum(i % 16 in SINKS for rows in kept for i in rows)
    assert sinks == {"keep": 9, "drop": 0, "exclude": 0}.get(mode, sinks)
    assert mode != "ignore" or 0 < sinks < 9, "the modes could not differ"
    if mode != "ignore":
        assert f"sinks={mode!r}: massive in dimensions {DIM}, tau {TAU:g} (given)" in notes
        assert f"layer 2: 9 visual tokens are sinks, of which {sinks} were kept" in notes


def test_counts_hold_where_sinks_are_more_than_the_budget_or_the_others_fewer():
    """Oracle: by hand. Of three sinks one place keeps the best; of 16, 14 places take one sink though all should go."""
    for mode, keep_ratio, n, sinks in (("keep", 1 / 16, 1, 1), ("drop", 14 / 16, 14, 1), ("keep", 1.0, 16, 3)):
        kept, _ = fastv(mode, keep_ratio)
        assert kept == by_hand(mode, keep_ratio)
        assert [len(rows) for rows in kept] == [n, 2 * n]
        assert sum(i % 16 in SINKS for i in kept[0]) == sinks


def test_ignoring_them_is_the_default_and_changes_no_bit():
    model, inputs = sunk()
    with vtprune.pruned(model, "fastv", keep_ratio=RATIO):
        plain = oracle.text_logits(model, inputs)
    with vtprune.pruned(model, "fastv", keep_ratio=RATIO, sinks="ignore"):
        assert all(map(torch.equal, plain, oracle.text_logits(model, inputs)))
    with vtprune.pruned(model, "fastv", keep_ratio=1.0, **options("drop")):
        whole = oracle.text_logits(model, inputs)
    assert all(map(torch.equal, whole, oracle.text_logits(model, inputs)))


@pytest.mark.parametrize("mode", ["drop", "keep"])
def test_what_is_dropped_is_as_if_masked(mode):
    """Oracle: the unwrapped model at full length with the dropped columns masked, in prefill and decode steps."""
    model, inputs = sunk()
    with vtprune.pruned(model, "pyramiddrop", keep_ratio=0.25, positions="original", **options(mode)):
        got, kept = answer(model, inputs), visible(model)
    with oracle.MaskedColumns(model, kept):
        expected = answer(model, inputs)
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mode", ["exclude", "drop", "keep"])
def test_a_batch_of_two_is_two_of_one(mode):
    model, _ = sunk()

    def run(inputs):
        with vtprune.pruned(model, "fastv", keep_ratio=RATIO, **options(mode)):
            return oracle.text_logits(model, inputs)

    oracle.assert_batch_equals_rows(run, "llava", tiny.samples("llava", "ragged"), 1e-9)


# ------------------------------------------------------------------------------------------------ every policy

CASES = {
    "aim": ("image", {"keep_ratio": 0.6}),
    "flashvid": ("video", {"keep_ratio": 0.5}),
    "framefusion": ("video", {"keep_ratio": 0.5, "similarity": 0.1}),
    "holitom": ("video", {"keep_ratio": 0.4}),
    "prunevid": ("video", {"keep_ratio": 0.5}),
    "sparsevlm": ("image", {"layers": (2, 3, 4), "of": None, "n_keeps": (8, 6, 4)}),
    "sparsevlm plus": ("image", {"layers": (2, 3, 4), "of": None, "n_keeps": (8, 6, 4), "version": "plus"}),
    "transprune": ("image", {"keep_ratio": 0.3}),
    "pyramiddrop": ("image", {"keep_ratio": 0.3}),
    "fastv": ("image", {"keep_ratio": 0.3}),
    "zipvl": ("image", {"keep_ratio": 0.3, "layers": (2, 4), "of": None}),
}
"""Options with which a policy ranks by attention at layer 2 or later of a decoder of six layers."""


@cache
def deep(kind: str):
    family = {"image": "llava", "video": "qwen2_5_vl"}[kind]
    return tiny.build(family, layers=6), tiny.batch(family, "one") if kind == "image" else tiny.video(family, "one")


def living(name: str, mode: str, ordinals: tuple[int, ...]) -> dict[float, tuple[int, int, int]]:
    """By site where sinks were looked for: tokens and sinks before, and sinks in what the next part of a layer gets."""
    kind, more = CASES[name]
    model, inputs = deep(kind)
    layers, after, handles = tiny.text_model(model).layers, {}, []

    def see(site: float, module, args, output) -> None:
        after[site] = int(DETECTOR.find(args[0][0]).sum())

    for i, layer in enumerate(layers):
        for site, norm in ((i, layer.input_layernorm), (i + 0.5, layer.post_attention_layernorm)):
            handles.append(norm.register_forward_hook(lambda *seen, site=site: see(site, *seen)))
    try:
        with planted(model, ordinals), vtprune.pruned(model, name.split()[0], **more, **options(mode)) as report:
            oracle.text_logits(model, inputs)
            sites = [record for record in report.sites if record.sinks.get(0) is not None]
            return {one.site: (one.after[0], int(one.sinks[0].sum()), after[one.site]) for one in sites}
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_every_policy_that_ranks_by_attention_obeys(name):
    """Oracle: massive states in what the layer is given behind the site. A newcomer that ranks otherwise is found."""
    dropped, kept = (living(name, mode, (1, 5)) for mode in ("drop", "keep"))
    site = min(kept)
    assert site == min(dropped) and dropped[site][:2] == kept[site][:2], "the same question, the same count"
    n, sinks, left = kept[site]
    assert 0 < sinks <= n and left == sinks
    assert dropped[site][2] == 0, "neither kept nor merged into what is kept"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("uniform >> fastv", {"keep_ratio": 0.5}),
        ("fastv", {"keep_flops": 0.85}),
        ("uniform >> fastv", {"split": "even"}),
    ],
)
def test_stages_and_budgets_obey_too(name, more):
    """Oracle: counts without a rule; every sink that came to the stage stays, or goes."""
    model, inputs = sunk()
    counts = []
    for mode in ("ignore", "drop", "keep"):
        with vtprune.pruned(model, name, **more, **options(mode)) as report:
            oracle.text_logits(model, inputs)
            record = report.sites[-1]
        counts.append(record.after)
        if mode != "ignore":
            (sinks,) = (note for note in record.notes if "are sinks" in note)
            total = sum(int(found.sum()) for found in record.sinks.values())
            kept = total if mode == "keep" else 0
            assert total > 0 and sinks == f"{total} visual tokens are sinks, of which {kept} were kept"
    assert counts[0] == counts[1] == counts[2]


def test_every_policy_that_ranks_by_attention_is_tried():
    ranking = {name for name, cls in POLICIES.items() if any(need.kind == "rows" for need in needed(cls()))}
    # the grid of SAP stays whatever attention says, and SpAtten adds up layers before those where sinks are looked for;
    # the report tells how many were kept
    assert {name.split()[0] for name in CASES} == ranking - {"sap", "spatten"}


IN_CACHE = [name for name in cache_policies() if name != "cache_random"]


@pytest.mark.parametrize("name", [*IN_CACHE, "divprune >> snapkv", "elastic_cache merged"])
def test_policies_of_the_cache_obey_from_layer_2_on(name):
    """Oracle: the planted tokens; counts without a rule; the layers before, which are as without a rule."""
    model, inputs = deep("image")
    more = {"keep_ratio": 0.5} | ({"merge": "nearest_anchor"} if "merged" in name else {})
    kept, values = {}, {}
    for mode in MODES:
        with planted(model, (1, 5)), vtprune.pruned(model, name.split(" m")[0], **more, **options(mode)) as report:
            cache_ = tiny.greedy(model, inputs, 1).past_key_values
            kept[mode] = [layer[0] for layer in report.last.cached.kept]
            values[mode] = cache_.layers[3].values
            said = [note for note in report.notes if "visual tokens are sinks" in note]
            assert len(said) == (mode != "ignore")
    sinks = {1, 5} & set(torch.cat([rows.flatten() for rows in kept["keep"]]).tolist())
    assert sinks, "pruned away before"
    for layer, rows in enumerate(kept["ignore"]):
        for mode in MODES[1:]:
            assert kept[mode][layer].shape == rows.shape
            if layer < 2 and name != "laq":  # whose tokens to come have seen all layers
                assert torch.equal(kept[mode][layer], rows)
        if layer >= 2:
            assert all(sinks <= set(head) for head in kept["keep"][layer].view(-1, rows.shape[-1]).tolist())
            assert not sinks & set(kept["drop"][layer].flatten().tolist())
    if "merged" in name:
        with planted(model, (1, 5)), vtprune.pruned(model, "none"):
            whole = tiny.greedy(model, inputs, 1).past_key_values.layers[3].values[0]
        rows, first = kept["drop"][3].tolist(), int(tiny.visual(inputs)[0].int().argmax())
        joined = {row: [row] for row in rows}
        for row in sorted({*range(16)} - {*rows} - sinks):
            joined[min(rows, key=lambda one: (abs(one - row), one))].append(row)
        for i, row in enumerate(rows):
            mean = whole[:, [first + one for one in joined[row]]].float().mean(1)
            torch.testing.assert_close(values["drop"][0, :, first + i].float(), mean, atol=1e-5, rtol=0)


@dataclass
class Reader:
    """Keeps everything and a copy of what it read."""

    needs = frozenset({"text_attention", "text_rotary", "transition:1", "keys"})
    sites = (2,)
    seen: dict = field(default_factory=dict)

    def select(self, tokens):
        self.seen.update(tokens.signals)
        return vtprune.Selection.all(tokens)


def test_what_a_policy_reads():
    """Oracle: the same signals without a rule; of tokens that are no sinks nothing changes, of keys nothing at all."""
    model, inputs = deep("image")
    read = {}
    for mode in MODES:
        with planted(model, (1, 5)), vtprune.pruned(model, Reader(), **options(mode)) as report:
            oracle.text_logits(model, inputs)
            read[mode] = report.policy.seen
    plain, none, last, first = (read[mode] for mode in MODES)
    sinks = torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor([1, 5]), True)
    for seen in (none, last, first):
        assert torch.equal(seen["keys"], plain["keys"])
        for name in Reader.needs - {"keys"}:
            torch.testing.assert_close(seen[name][:, ~sinks], plain[name][:, ~sinks], atol=1e-19, rtol=0)
    attention, moved = "text_attention", "transition:1"
    assert not bool(none[attention][:, sinks].any()) and torch.equal(none[moved], plain[moved])
    for name in (attention, moved):
        assert float(last[name][:, sinks].max()) < 1e-19
        assert bool((first[name][:, sinks] > first[name][:, ~sinks].amax(-1, keepdim=True)).all())
    assert torch.equal(last["text_rotary"], plain["text_rotary"])
    rotary = first["text_rotary"]
    assert bool((rotary[:, sinks] <= rotary[:, ~sinks].amin(-1, keepdim=True)).all())


def test_sinks_that_are_dropped_are_merged_into_nothing():
    """Oracle: by hand, of both ways to say what is merged; a sink that is kept all the same stays whole."""
    sinks = torch.tensor([False, True, False, True, False])
    to = vtprune.Selection(torch.tensor([0, 3, 4]), torch.tensor([0, 0, 2, 1, 2]))
    assert unmerged(to, sinks).merge.tolist() == [0, -1, 2, 1, 2]
    weights = torch.tensor([[0.5, 0.3, 0.2, 0, 0], [0, 0.25, 0, 0.5, 0.25], [0, 0, 0, 0, 1]])
    given = vtprune.Selection(torch.tensor([0, 3, 4]), weights.to_sparse_coo())
    expected = torch.tensor([[5 / 7, 0, 2 / 7, 0, 0], [0, 0.25, 0, 0.5, 0.25], [0, 0, 0, 0, 1]])
    torch.testing.assert_close(unmerged(given, sinks).merge.to_dense(), expected)
    plain = vtprune.Selection(torch.tensor([0]))
    assert unmerged(plain, sinks) is plain


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("policy", "more", "error"),
    [
        ("fastv", {"sinks": "maybe"}, "sinks is one of 'ignore', 'exclude', 'drop', 'keep'; got 'maybe'"),
        ("fastv", {"sinks": "keep"}, "the sink dimensions of this llava are not known.*SinkDetector.calibrate"),
        ("fastv", {"sink_detector": DETECTOR}, "sinks='ignore' looks for none"),
        ("fastv", {"layer": 1, **options("keep")}, "looked for from layer 2 on;.*at layer 1. Choose layer 2"),
        ("divprune", options("drop"), "chooses before it, where no decoder layer has run yet.*fastv"),
        ("visionzip", options("drop"), "chooses before it, where no decoder layer has run yet.*fastv"),
        ("dart", options("exclude"), "does not rank by it.*fastv"),
        ("pact", options("keep"), "does not rank by it"),
        ("cache_random", options("keep"), "evicts by something else.*fastv"),
        ("divprune >> cache_random", options("keep"), "evicts by something else.*fastv"),
        ("transprune", {"criteria": "transition", **options("keep")}, "does not rank by it"),
        ("fastv", options("keep", SinkDetector((64,))), "do not all lie in this decoder's width of 64"),
        ("fastv", options("keep", SinkDetector((7,), model_type="qwen2_vl")), "model_type 'qwen2_vl', and this one"),
        ("fastv", options("keep", SinkDetector((7,), depth=32)), "depth 32, and this one has 5"),
    ],
)
def test_wrap_refuses(policy, more, error):
    model, _ = sunk()
    with pytest.raises(ValueError, match=error):
        vtprune.wrap(model, policy, **more)
    assert not vtprune.is_wrapped(model)


def test_a_detector_of_another_type_is_refused():
    with pytest.raises(TypeError, match="sink_detector is a vtprune.SinkDetector.*got 'sinks.json'"):
        vtprune.wrap(sunk()[0], "fastv", sinks="keep", sink_detector="sinks.json")


@pytest.mark.filterwarnings("ignore:.*unverified")
def test_a_family_that_nobody_knows_is_no_hindrance(monkeypatch):
    """Oracle: the same model while its family is known."""
    monkeypatch.delitem(FAMILIES, "llava")
    model, inputs = sunk()
    with vtprune.pruned(model, "fastv", keep_ratio=RATIO, strict=False, **options("keep")) as report:
        oracle.text_logits(model, inputs)
        assert [rows.tolist() for rows in report.sites[0].kept] == by_hand("keep")


def test_a_site_before_layer_2_says_so():
    """PyramidDrop at 1 and 3 looks for sinks at 3 alone."""
    model, inputs = sunk()
    more = {"layers": (1, 3), "keep_ratios": (0.75, 0.5), "of": None}
    with vtprune.pruned(model, "pyramiddrop", **more, **options("drop")) as report:
        oracle.text_logits(model, inputs)
        early, late = (record.notes for record in report.sites)
    assert early == ["attention was read before layer 2, where sinks are not looked for"]
    assert len(late) == 1 and "are sinks" in late[0]


# ------------------------------------------------------------------------------------------------ dimensions


def massive(model, words: dict[int, dict[int, float]]):
    """The model with some words' embeddings massive: word -> dimension -> size."""
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for word, sizes in words.items():
            for dim, size in sizes.items():
                table[word, dim] = size
    return model


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3n", "idefics3"])
def test_calibration_finds_the_planted_dimensions(family):
    """Oracle: two dimensions planted in the embedding of the first word; the stronger comes first."""
    model = massive(tiny.build(family, dtype=torch.float32, layers=5), {tiny.BOS: {11: 90.0, 40: -60.0}})
    layers = len(family_of(model).decoder(model).layers)
    found = SinkDetector.calibrate(model, [[tiny.BOS, 5, 6], torch.tensor([tiny.BOS, 9])], tau=3.0)
    assert found.dims == (11, 40) and found.tau == 3.0 and found.source == "calibrated on 2 prompts"
    assert (found.model_type, found.width, found.depth) == (model.config.model_type, 64, layers)


def test_calibration_takes_the_median_of_prompts_and_only_the_first_token():
    """Oracle: which of three prompts begin with a massive word."""
    model = massive(tiny.build("llava", layers=5), {20: {11: 60.0}})
    tokenizer = lambda text: {"input_ids": [int(word) for word in text.split()]}  # noqa: E731
    assert SinkDetector.calibrate(model, ["20 3", "20", "4 20"], tokenizer=tokenizer, tau=TAU).dims == (11,)
    with pytest.raises(ValueError, match="no dimension of the first token is above tau=5.0: the largest is"):
        SinkDetector.calibrate(model, ["20 3", "5", "4 20"], tokenizer=tokenizer, tau=TAU)


def test_a_wrapped_model_and_what_calibration_refuses():
    model = massive(tiny.build("llava", layers=5), {tiny.BOS: {11: 60.0}})
    vtprune.wrap(model, "fastv")
    assert SinkDetector.calibrate(model, [[tiny.BOS, 4]], tau=TAU).dims == (11,)
    for prompts, more, error in (
        ("text", {}, "prompts are a list"),
        ([], {}, "prompts are a list"),
        (["text"], {}, "need tokenizer="),
        ([[]], {}, "its token ids"),
        ([[0.5]], {}, "its token ids"),
        ([[1]], {"tau": 0}, "tau is a finite number above 0"),
        ([[1]], {"tau": float("nan")}, "tau is a finite number above 0"),
    ):
        with pytest.raises(ValueError, match=error):
            SinkDetector.calibrate(model, prompts, **more)
    with pytest.raises(ValueError, match="L is 5 or more; this decoder has 4 layers"):
        SinkDetector.calibrate(tiny.build("llava"), [[1]])


def test_save_and_load_are_a_round_trip(tmp_path):
    for detector in (DETECTOR, SinkDetector((3, 1), 4.5, "llava", 64, 5, "calibrated on 2 prompts")):
        detector.save(tmp_path / "sinks.json")
        assert SinkDetector.load(tmp_path / "sinks.json") == detector
    assert json.loads((tmp_path / "sinks.json").read_text())["dims"] == [3, 1]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dims": []}, "is damaged: dims are"),
        ({"dims": [1, 1]}, "is damaged: dims are"),
        ({"dims": [True]}, "is damaged: dims are"),
        ({"dims": "12"}, "is damaged: dims are"),
        ({"dims": [64]}, "is damaged: dims lie in a width of 64"),
        ({"tau": float("nan")}, "is damaged: tau is"),
        ({"tau": "20"}, "is damaged: tau is"),
        ({"width": 0}, "is damaged: width is"),
        ({"source": None}, "is damaged: source is text"),
        ({"version": 2}, "version is 2, not 1"),
        ({"version": True}, "version is True, not 1"),
        ({"format": None}, "format is None, not 'vtprune sinks'"),
        ({"more": 1}, "more too many or too few"),
        (None, "holds a JSON list"),
        ("{", "holds no JSON"),
        ("[" * 60000, "holds no JSON"),
        ("\udcff", "holds no JSON"),
        (" " * 70000, "is larger than 65536 bytes"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, change, error):
    path = tmp_path / "sinks.json"
    SinkDetector((3, 1), 4.5, "llava", 64, 5).save(path)
    if isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    else:
        path.write_bytes((change or "[1]").encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=error) as refused:
        SinkDetector.load(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*vtprune sinks MODEL --out FILE"):
        SinkDetector.load(tmp_path / "none.json")


def test_published_dimensions_are_those_of_models_of_these_sizes():
    """Oracle: the publication's numbers, and configs with the models' published sizes."""
    sizes = {
        ("llava", "llama", 4096, 32, 11008): ("LLaVA-1.5-7B", (1415, 2533), CODE),
        ("llava", "llama", 5120, 40, 13824): ("LLaVA-1.5-13B", (2100, 4743), CODE),
        ("qwen2_vl", "qwen2_vl_text", 3584, 28, 18944): ("Qwen2-VL-7B", (458, 2570), PAPER),
        ("internvl", "llama", 4096, 32, 14336): ("InternVL2-8B", (3584,), PAPER),
    }
    assert len(PUBLISHED) == len(sizes)
    for (kind, text, width, depth, mlp), (name, dims, status) in sizes.items():
        config = SimpleNamespace(model_type=text, hidden_size=width, num_hidden_layers=depth, intermediate_size=mlp)
        known = published_for(kind, config)
        assert (known.name, known.dims, known.status) == (name, dims, status)
        assert published_for("llava_next", config) is None
        for other in ({"hidden_size": width + 1}, {"num_hidden_layers": depth + 1}, {"intermediate_size": mlp + 1}):
            assert published_for(kind, SimpleNamespace(**{**vars(config), **other})) is None
    mistral = SimpleNamespace(model_type="mistral", hidden_size=4096, num_hidden_layers=32, intermediate_size=11008)
    assert published_for("llava", mistral) is None


def test_published_dimensions_are_used_by_wrap(monkeypatch):
    """Oracle: a table with the sizes of a tiny model."""
    from vtprune import sink_table

    entry = sink_table.PublishedSinks("Tiny", "llava", "llama", 64, 5, 128, (DIM,), PAPER)
    monkeypatch.setattr(sink_table, "PUBLISHED", (entry,))
    model, _ = sunk()
    assert SinkDetector.published(model).dims == (DIM,)
    with vtprune.pruned(model, "fastv", sinks="keep") as report:
        assert report.notes == [
            f"sinks='keep': massive in dimensions {DIM}, tau 20 (Tiny, second-hand, from the paper)"
        ]
