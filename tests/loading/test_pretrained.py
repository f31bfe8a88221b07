"""Folders of ``save_pretrained``: their model without a factory, and nothing of what they bring is run."""

import json
import sys

import pytest
import torch
import transformers
from cli_command import spdexport
from safetensors.torch import load_file, save_file

from spdexport.errors import SourceError, UsageError
from spdexport.loading.load import load


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    return transformers.ResNetForImageClassification(config)


MODELS = {
    "resnet": resnet,
    # Its names in the file are older ones than those of the module.
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
    ),
    # The weights of its head are those of its embedding, and stand in the file once.
    "bert": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
        )
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A folder that may be damaged, and how its configuration is changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (saved / "resnet").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    def change(**values):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    return change


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_that_which_was_saved(saved, name):
    torch.manual_seed(0)
    module = MODELS[name]().eval()
    loaded = load(saved / name)
    assert loaded.kind == "pretrained"
    assert not loaded.module.training
    kwargs = loaded.inputs.kwargs
    with torch.no_grad():
        # Attention is computed another way.
        torch.testing.assert_close(loaded.module(**kwargs).logits, module(**kwargs).logits, rtol=1e-5, atol=1e-6)


def test_convert_and_verify_need_the_folder_alone(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = spdexport("convert", saved / "resnet", "--provider", "cpu", "-o", "r.onnx")
    assert result.exit_code == 0, result.output
    assert "the model is transformers.ResNetForImageClassification, as config.json names it" in " ".join(
        result.stdout.split()
    )
    assert spdexport("verify", "r.onnx", "--against", saved / "resnet", "--provider", "cpu", "-q").exit_code == 0


def test_what_is_read_is_not_overwritten(copy):
    folder = copy()
    before = (folder / "config.json").read_bytes()
    assert spdexport("inspect", folder, "--report", folder / "config.json").exit_code == 2
    assert (folder / "config.json").read_bytes() == before


def test_weights_in_several_files(copy):
    folder = copy()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    table = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    assert torch.equal(load(folder).module.state_dict()[names[0]], state[names[0]])
    table["weight_map"][names[0]] = "../b.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(SourceError, match="which is no file of the folder"):
        load(folder)


def test_code_that_the_folder_brings_is_not_run(copy, tmp_path):
    folder = copy(architectures=["MyNet"], auto_map={"AutoModel": "evil.MyNet"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(SourceError, match="code in the folder or on a hub, which is not run"):
        load(folder)
    known = copy(architectures=["ResNetForImageClassification"])
    assert load(known).module is not None  # what transformers has itself is taken, whatever the folder says beside it
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"architectures": ["os"]}, "which is none of transformers'"),
        ({"architectures": ["PreTrainedTokenizer"]}, "which is none of transformers'"),
        ({"architectures": None}, "which is none of transformers'"),
        ({"hidden_sizes": [10**12, 16]}, "gives hidden_sizes as 1e\\+12"),
        ({"hidden_sizes": "wide"}, "transformers makes no model of the configuration"),
        (
            {"hidden_sizes": [8, 32]},
            "not of the model that the configuration tells|makes no model of the configuration",
        ),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_configurations_that_cannot_be_used(copy, values, what):
    with pytest.raises(SourceError, match=what) as caught:
        load(copy(**values))
    assert "--factory" in caught.value.hint


def test_a_folder_that_lacks_weights_has_none_that_are_random(copy):
    folder = copy()
    state = load_file(folder / "model.safetensors")
    del state["classifier.1.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"1 missing: classifier\.1\.weight"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "{", "\xff", "[" * 100_000])
def test_damaged_configurations(copy, text):
    folder = copy()
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError):
        load(folder)


def test_without_transformers(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="transformers is not installed") as caught:
        load(copy())
    assert "spdexport[transformers]" in caught.value.hint
