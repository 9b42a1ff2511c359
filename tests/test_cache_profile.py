"""Cache profiles: measured means, files and what is wrong with them, and what prefixkv makes of them."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from tests import model_folder, tiny
from tests.masked import model_of
from tests.policies.by_hand import kept_by
from vtprune.cache_profile import CacheProfile
from vtprune.cli import main
from vtprune.cli.cache_profile import is_clip
from vtprune.families.base import family_of
from vtprune.models import load
from vtprune.plan import facts_of
from vtprune.policies.prefixkv import PrefixKV
from vtprune.records import CacheRecord

DROPPED = {0: 0.0, 1: 0.31, 2: 0.52, 3: 0.97}
VISUAL = model_folder.GRID**2


def facts(family="llava"):
    model = model_of(family)
    return facts_of(model, family_of(model))


def profile(dropped=DROPPED, family="llava") -> CacheProfile:
    found = facts(family)
    return CacheProfile(found.model_type, found.depth, found.width, "prefixkv", 0.55, dropped, 3)


def record(before, after) -> CacheRecord:
    """[layer][sample] numbers; layers 1 and 3."""
    return CacheRecord([1, 3], before, [[torch.zeros(n, dtype=torch.int64) for n in row] for row in after], [], [], 0)


def test_a_profile_is_the_mean_over_samples():
    """Oracle: counted by hand; a sample without pictures counts for nothing."""
    records = [record([[10, 0], [10, 0]], [[5, 0], [1, 0]]), record([[20], [20]], [[4], [20]])]
    found = CacheProfile.measured(records, facts(), "prefixkv", 0.3)
    assert found.dropped == pytest.approx({1: (0.5 + 0.8) / 2, 3: 0.45}) and found.prompts == 2
    assert (found.model_type, found.depth, found.width) == ("llava", 4, 64)
    for nothing in ([], [record([[0], [0]], [[0], [0]])], [CacheRecord([], [], [], [], [], 0)]):
        with pytest.raises(ValueError, match="none of these had any"):
            CacheProfile.measured(nothing, facts(), "prefixkv", 0.3)


def test_a_file_gives_the_profile_back(tmp_path):
    path = tmp_path / "profile.json"
    profile().save(path)
    assert CacheProfile.load(path) == CacheProfile.load(str(path)) == profile()


def changed(**changes):
    told = {"vtprune_cache_profile": 1, **dataclasses.asdict(profile()), "dropped": {"0": 0.5}}
    told |= changes
    return json.dumps({name: value for name, value in told.items() if value != "gone"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed()[:40], "Unterminated string"),
        ("[1, 2]", "of version 1; make it with `vtprune cache-profile`"),
        ("\xff", "can't decode byte"),
        (changed(vtprune_cache_profile=2), "of version 1"),
        (changed(width="gone"), "missing 1 required positional argument: 'width'"),
        (changed(more=1), "unexpected keyword argument 'more'"),
        (changed(dropped=[0.5]), "has no attribute 'items'"),
        (changed(dropped={}), "it says nothing of any layer"),
        (changed(dropped={"one": 0.5}), "invalid literal"),
        (changed(dropped={"0": None}), "not 'NoneType'"),
        (changed(dropped={"0": 10**400}), "too large"),
        (changed(dropped={"0": float("nan")}), "what they drop is in [0, 1); got nan for layer 0"),
        (changed(dropped={"0": 1.0}), "got 1.0 for layer 0"),
        (changed(dropped={"4": 0.5}), "layers are 0 to depth - 1"),
        (changed(dropped={"-1": 0.5}), "layers are 0 to depth - 1"),
        (changed(depth="4"), "layers are 0 to depth - 1"),
        (changed(keep_ratio=0), "keep_ratio is in (0, 1]; got 0"),
        (changed(keep_ratio="half"), "keep_ratio is in (0, 1]; got 'half'"),
    ],
)
def test_a_damaged_file_is_told(text, said, tmp_path):
    path = tmp_path / "profile.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        PrefixKV(profile=path)
    assert str(path) in str(error.value)


def test_places_without_a_profile_are_told(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*none.json; make it with `vtprune cache-profile`"):
        CacheProfile.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        CacheProfile.load(tmp_path)


def test_every_layer_keeps_what_the_profile_says(tmp_path):
    """Oracle: round(n * (1 - dropped)), one at least; of these the tokens that a search that keeps all has best."""
    path = tmp_path / "profile.json"
    profile().save(path)
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    for given in (path, str(path), profile()):
        found = kept_by(model, inputs, "prefixkv", profile=given)
        for b, n in enumerate(found.before[0]):
            assert [layer[b] for layer in found.after] == [max(1, round(n * (1 - DROPPED[i]))) for i in range(4)]
    alike = kept_by(model, inputs, "elastic_cache", n_keep=found.after[2][0])
    assert torch.equal(alike.kept[2][0], found.kept[2][0]), "the best by attention"


def test_a_profile_of_another_model_is_refused():
    other = dataclasses.replace(profile(), width=32)
    said = "measured on a llava of 4 layers of width 32, and this model is a llava of 4 layers of width 64"
    with pytest.raises(ValueError, match=said):
        vtprune.wrap(model_of("llava"), "prefixkv", profile=other)
    with pytest.raises(ValueError, match="measured on a llava .* this model is a qwen2_5_vl"):
        vtprune.wrap(model_of("qwen2_5_vl"), "prefixkv", profile=profile())
    assert not vtprune.is_wrapped(model_of("llava"))
    with vtprune.pruned(model_of("llava"), "prefixkv", profile=profile({0: 0.5, 1: 0.5, 3: 0.5})):
        with pytest.raises(ValueError, match="says nothing of layer 2"):
            tiny.greedy(model_of("llava"), tiny.batch("llava", "one"), 1)


def test_a_policy_with_a_profile_can_be_changed():
    """Other options, of the same or another kind, for the calls inside."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, "prefixkv", profile=profile()) as report:
        with vtprune.options(model, queries=3):
            tiny.greedy(model, inputs, 1)
            assert [layer[0] for layer in report.last.cached.after] == [16, 11, 8, 1]
        with vtprune.options(model, profile=None, keep_ratio=0.5):
            tiny.greedy(model, inputs, 1)
            assert sum(layer[0] for layer in report.last.cached.after) == 32
        for budget in ({"keep_ratio": 0.5}, {"n_keep": 3}):
            with pytest.raises(ValueError, match="a profile says"), vtprune.options(model, **budget):
                pass


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two of four in a folder."""
    place, paths = tmp_path_factory.mktemp("pictures"), []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        paths.append(place / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths[:2]


def failed(capsys, *argv) -> str:
    assert main(["cache-profile", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vtprune: ")
    return err


def test_the_command_measures_each_file(folder, pictures, tmp_path, capsys):
    """Oracle: each picture's own report by hand, and their mean; then the profile is used."""
    target, question = tmp_path / "profile.json", "what color is this ?"
    argv = [folder, "--out", target, "--keep-ratio", 0.3, "--prompt", question, "--option", "queries=2", *pictures]
    assert main(["cache-profile", *map(str, argv)]) == 0
    printed, found = capsys.readouterr().out, CacheProfile.load(target)
    loaded, dropped = load(folder), []
    for path in pictures:
        text = f"<bos> user <image> {question} assistant"
        inputs = loaded.processor(images=Image.open(path), text=text, return_tensors="pt")
        kept = kept_by(loaded.model, inputs, "prefixkv", keep_ratio=0.3, queries=2)
        dropped.append([1 - layer[0] / VISUAL for layer in kept.after])
        assert sum(layer[0] for layer in kept.after) == round(0.3 * VISUAL * 4)
    means = [sum(layer) / 2 for layer in zip(*dropped, strict=True)]
    assert found.dropped == pytest.approx(dict(enumerate(means))) and len(set(means)) > 1
    assert (found.policy, found.keep_ratio, found.prompts, found.model_type) == ("prefixkv", 0.3, 2, "llava")
    assert [line.split() for line in printed.splitlines()[1:5]] == [[str(i), f"{x:.3f}"] for i, x in enumerate(means)]
    kept = kept_by(loaded.model, inputs, "prefixkv", profile=target)
    assert [layer[0] for layer in kept.after] == [VISUAL - round(VISUAL * x) for x in means]


def test_clips_and_other_policies(pictures, tmp_path):
    """A folder of pictures is a clip. Oracle: two frames are 16 tokens; 19 of six times as many stay by lot."""
    target = tmp_path / "profile.json"
    argv = ["embedded-video", pictures[0].parent, "--frames", 2, "--policy", "cache_random", "--out", target]
    assert main(["cache-profile", *map(str, argv)]) == 0
    found = CacheProfile.load(target)
    assert sorted(found.dropped.values()) == pytest.approx([1 - 4 / 16, *[1 - 3 / 16] * 5])
    assert found.policy == "cache_random" and found.keep_ratio == 0.2 and found.prompts == 1


def test_names_say_what_is_a_clip(tmp_path):
    film = tmp_path / "film.png"
    film.mkdir()
    names = {"a.png": False, "B.JPG": False, "c.gif": True, "d.mp4": True, "e": True, str(film): True}
    assert {name: is_clip(name) for name in names} == names


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--policy", "fastv"], "a profile is of a policy of the cache, such as prefixkv; fastv evicts nothing"),
        (["--policy", "prefixvk"], "unknown policy 'prefixvk'; did you mean 'prefixkv'?"),
        (["--keep-ratio", "20"], "in (0, 1]; got 20"),
        (["--option", "search=slow"], "search is one of 'exact', 'published'; got 'slow'"),
        (["--prompt", " "], "--prompt is a question in words; got ' '"),
        (["--frames", "0"], "--frames is a number of frames, 1 or more; got 0"),
        (["--out", "/no/such/place.json"], "--out cannot write /no/such/place.json: there is no folder /no/such"),
        (["none.png"], "there is no file none.png"),
        (["--device", "gpu"], "there is no device 'gpu'"),
        ([], "there is no folder /no/such/model"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv, said, pictures, tmp_path, capsys):
    """Before a model is loaded: there is none to be had under the name given here."""
    start = ["--out", tmp_path / "profile.json", "/no/such/model", pictures[0]]
    assert said in failed(capsys, *start, *argv)
    assert not (tmp_path / "profile.json").exists()
