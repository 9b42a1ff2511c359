"""Loading: a folder that transformers wrote comes back whole; every broken one is refused with the next step."""

import json
import pickle
import shutil
from importlib.util import find_spec

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import vtprune.embedded
from tests import model_folder
from vtprune.model_folder import ModelError, check_folder
from vtprune.models import load, load_processor, load_weights, read_device, read_dtype


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return model_folder.write(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(whole, tmp_path / "model")


def refused(action, *fragments: str, error: type[Exception] = ModelError) -> str:
    with pytest.raises(error) as caught:
        action()
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    return text


def test_a_folder_comes_back_whole(whole):
    loaded = load(whole)
    expected = model_folder.build_model().state_dict()
    state = loaded.model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert not loaded.model.training and loaded.model.dtype == torch.float32 and not loaded.embedded
    assert (loaded.name, loaded.model_type) == (str(whole), "llava")
    assert type(loaded.processor) is hf.LlavaProcessor


def test_dtype_and_attention_are_those_asked_for(whole):
    loaded = load(whole, dtype="bfloat16", attention="eager", device="cpu")
    assert (
        loaded.model.dtype == torch.bfloat16
        and loaded.model.model.language_model.config._attn_implementation == "eager"
    )


def test_the_embedded_model_is_a_folder_too(whole, monkeypatch):
    monkeypatch.setattr(vtprune.embedded, "image_path", lambda: whole)
    loaded = load()
    assert loaded.embedded and loaded.name == "embedded"
    monkeypatch.setattr(vtprune.embedded, "image_path", lambda: whole / "none")
    refused(load, "holds no embedded model", "--model FOLDER")


def test_the_model_that_ships_loads():
    if not vtprune.embedded.image_path().is_dir():
        pytest.skip("this checkout holds no trained weights (vtprune/embedded/image)")
    loaded, (model, _) = load(), vtprune.embedded.load_image()
    ours, theirs = loaded.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_models_that_ship_have_names():
    """Oracle: what ``vtprune.embedded`` loads."""
    loaded, (model, processor) = load("embedded-video"), vtprune.embedded.load_video()
    ours, theirs = loaded.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.name, loaded.model_type, loaded.embedded) == ("embedded-video", "qwen3_vl", True)
    assert type(loaded.processor) is type(processor)
    assert load("embedded-image").model_type == "llava" and load("embedded-image").embedded
    refused(lambda: load("embedded-clips"), "'embedded', 'embedded-image', 'embedded-video'")


@pytest.mark.parametrize(("name", "fragment"), [("tokenizer.json", "no tokenizer"), ("model.safetensors", "damaged")])
def test_a_damaged_installation(tmp_path, monkeypatch, name, fragment):
    folder = shutil.copytree(vtprune.embedded.video_path(), tmp_path / "video")
    monkeypatch.setattr(vtprune.embedded, "video_path", lambda: folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:100]) if fragment == "damaged" else path.unlink()
    refused(lambda: load("embedded-video"), fragment)
    shutil.rmtree(folder)
    refused(lambda: load("embedded-video"), "holds no embedded model", "--model FOLDER")


# ---------------------------------------------------------------------------------------------- what is no folder


def test_names_that_are_no_folder(tmp_path):
    text = refused(lambda: load("llava-hf/llava-1.5-7b-hf"), "downloads nothing", "--local-dir llava-1.5-7b-hf")
    assert "hf download llava-hf/llava-1.5-7b-hf" in text
    refused(lambda: load(tmp_path / "none"), f"no folder {tmp_path / 'none'}", "config.json")
    for name, fragment in (("model.safetensors", "give the folder"), ("weights.npz", "safetensors only")):
        (tmp_path / name).write_bytes(b"x")
        refused(lambda name=name: load(tmp_path / name), "is a file", fragment)
    refused(lambda: load(tmp_path), "has no config.json")


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(lambda: load(tmp_path), "adapter", "merge it")


# ------------------------------------------------------------------------------------------------- broken folders


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("{'a", "cannot be read"), ("[]", "holds a list"), ("{}", "names no model_type"), ("\x00\xff", "cannot be read")],
)
def test_a_broken_config(folder, content, fragment):
    (folder / "config.json").write_text(content, encoding="latin-1")
    refused(lambda: load(folder), "config.json", fragment)


@pytest.mark.parametrize("model_type", ["mllama", "bert", "no_such_type"])
def test_an_unknown_family_is_named_with_those_that_are_known(folder, model_type):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    refused(lambda: load(folder), repr(model_type), "llava, llava_next", "families/base.py", error=NotImplementedError)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.npz", "model.pkl", "model.safetensors"])
def test_pickles_are_never_opened(folder, tmp_path, name):
    """Oracle: a pickle that makes a file when it is read. Under the name of safetensors too."""
    (folder / "model.safetensors").unlink()
    bomb = tmp_path / "exploded"
    (folder / name).write_bytes(pickle.dumps(Bomb(bomb)))
    refused(lambda: load(folder), name, "safetensors")
    assert not bomb.exists()
    pickle.loads((folder / name).read_bytes()).close()
    assert bomb.exists(), "the bomb is a dud"


def test_loading_itself_knows_safetensors_only(folder):
    """Below the check of the folder too, and for a pickle that torch itself would call safe."""
    model = load_weights(folder, torch.float32)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refused(lambda: load_weights(folder, torch.float32), "cannot be loaded", "model.safetensors")


def test_a_pickle_beside_safetensors_is_left_alone(folder, tmp_path):
    bomb = tmp_path / "exploded"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(bomb)))
    assert load(folder).model_type == "llava" and not bomb.exists()


def test_code_of_the_folder_is_not_run(folder, tmp_path):
    """Oracle: a module that makes a file when it is imported, named as the class of everything."""
    bomb = tmp_path / "exploded"
    (folder / "evil.py").write_text(f"open({str(bomb)!r}, 'w')\n")
    for name, classes in (
        ("config.json", ("AutoConfig", "AutoModelForImageTextToText")),
        ("processor_config.json", ("AutoProcessor", "AutoImageProcessor")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = dict.fromkeys(classes, "evil.Evil")
        (folder / name).write_text(json.dumps(content))
    assert load(folder).model_type == "llava" and not bomb.exists()


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda data: data[: len(data) // 2], "damaged or no safetensors"),
        (lambda data: data[:4], "damaged or no safetensors"),
        (lambda data: b"", "damaged or no safetensors"),
        (lambda data: b"\xff" * 8 + data[8:], "damaged or no safetensors"),
        (lambda data: data[:8] + b"!" + data[9:], "damaged or no safetensors"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_damaged_safetensors(folder, damage, fragment):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: load(folder), str(path), fragment)


def test_safetensors_without_tensors(folder):
    save_file({}, folder / "model.safetensors")
    refused(lambda: load(folder), "holds no tensors")


def test_weights_that_are_missing_would_be_random(folder):
    path, name = folder / "model.safetensors", "language_model.lm_head.weight"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("layers.2.mlp.up_proj.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    refused(lambda: load(folder), "lacks 1 weights", "layers.2.mlp.up_proj.weight", "random")


def test_weights_of_another_shape(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("layers.2.mlp.up_proj.weight"))
    save_file({**tensors, name: tensors[name][:5].clone()}, path, {"format": "pt"})
    refused(lambda: load(folder), str(folder), "cannot be loaded")


def test_shards(folder):
    """A model in two files loads; without one of them, or with an index of nothing, it does not."""
    model = load_weights(folder, torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(folder).model_type == "llava"
    shards[1].unlink()
    refused(lambda: load(folder), f"1 of {len(shards)} files of weights are missing: {shards[1].name}")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(lambda: load(folder), "the index of weights is empty")


@pytest.mark.parametrize(
    ("missing", "fragment"),
    [("tokenizer.json", "no tokenizer"), ("processor_config.json", "no picture processor")],
)
def test_a_missing_processor(folder, missing, fragment):
    (folder / missing).unlink()
    refused(lambda: check_folder(folder), fragment, missing)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_broken_processor(folder, name):
    (folder / name).write_text("{")
    refused(lambda: load(folder), name)


def test_a_processor_of_text_alone(folder):
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PreTrainedTokenizerFast"}))
    refused(lambda: load_processor(folder), str(folder), "processor_config.json")


@pytest.mark.parametrize(
    ("said", "fragment"),
    [
        ("Qwen2VLVideoProcessor requires the Torchvision library but it was not found", "pip install torchvision"),
        ("Package `num2words` is required to run SmolVLM processor", "pip install num2words"),
        ("something else is missing", "install what it names"),
    ],
)
def test_a_processor_that_needs_a_package(folder, monkeypatch, said, fragment):
    """The texts are those that transformers 5.23 raises where the package is not installed."""

    def fail(*args, **more):
        raise ImportError(said)

    monkeypatch.setattr(hf.AutoProcessor, "from_pretrained", fail)
    refused(lambda: load(folder), said, fragment)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_processor_that_needs_torchvision(folder):
    """What transformers itself says where torchvision is missing."""
    config = json.loads((folder / "processor_config.json").read_text())
    config |= {"processor_class": "PixtralProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(config))
    refused(lambda: load(folder), "Torchvision", "pip install torchvision (the version that fits your torch)")


# ----------------------------------------------------------------------------------------------- devices and dtypes


def test_devices():
    assert read_device("cpu") == torch.device("cpu")
    assert read_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpu:7", "meta", "", "cuda:-1", "cuda:99"):
        refused(lambda name=name: read_device(name), f"no device {name!r}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_that_is_not_there(name):
    refused(lambda: read_device(name), f"no device {name!r}", "--device cpu")


@pytest.mark.gpu
def test_cuda(whole):
    assert read_device("cuda").type == "cuda"
    assert load(whole, device="cuda").model.device.type == "cuda"


def test_dtypes():
    cpu = torch.device("cpu")
    assert read_dtype("auto", cpu) == torch.float32 and read_dtype("auto", torch.device("cuda")) == "auto"
    assert read_dtype("bfloat16", cpu) == torch.bfloat16
    refused(lambda: read_dtype("int8", cpu), "'int8'", "auto, float32, bfloat16, float16")
    refused(lambda: load("embedded", attention="quick"), "'quick'", "sdpa, eager")
