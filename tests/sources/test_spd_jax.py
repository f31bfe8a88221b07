"""Checkpoints of SPD's JAX code. ``tests/data/spd_jax`` was written by orbax itself, in the trees that SPD gives it.

Reading them takes ``tensorstore``, which the tests may be without: then what is said of that is tested alone. Stacks of
experts are written from the description of their shapes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spdexport import convert, load_components
from spdexport.errors import ComponentsError, RuntimeMissingError
from spdexport.sources.run_config import RunConfig
from spdexport.sources.run_files import last_checkpoint, last_orbax
from spdexport.sources.spd_jax import _factor_keys, _layers_of, _unstacked

DATA = Path(__file__).parents[1] / "data"
JAX = DATA / "spd_jax"
KINDS = DATA / "spd_kinds"


def test_what_is_said_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(RuntimeMissingError, match="takes the package tensorstore") as caught:
        load_components(JAX / "sites")
    assert "pip install 'spdexport[jax]'" in caught.value.hint
    assert caught.value.exit_status == 2


@pytest.fixture
def store():
    return pytest.importorskip("tensorstore")


@pytest.mark.parametrize("inside", [".", "ckpts", "ckpts/7", "ckpts/7/decomposition"])
def test_a_run_and_whatever_folder_of_it_is_given(store, inside):
    right = torch.load(KINDS / "vector_mlp" / "model_100.pth", weights_only=True)
    found = load_components(JAX / "sites" / inside)
    assert (found.kind, found.layout, found.dashed, dict(found.target)) == ("spd", "JAX", False, {})
    assert list(found.components) == ["blocks.0", "blocks.1", "head"]
    for name, raw in found.components.items():
        assert torch.equal(raw.V, right[f"_components.{name.replace('.', '-')}.V"])
        assert torch.equal(raw.U, right[f"_components.{name.replace('.', '-')}.U"])


def test_a_run_of_jax_is_converted_with_the_factorys_weights(store, tmp_path):
    given = {"factory": f"{KINDS / 'targets.py'}:MLP", "inputs": KINDS / "vector_mlp.x.npz", "verify": False}
    made = convert(JAX / "sites", tmp_path / "m.onnx", **given)
    assert any("the dense weights are the factory's own" in note for note in made.notes)
    assert [layer.components for layer in made.plan.layers] == [9, 10, 11]
    with pytest.raises(ComponentsError, match="what JAX saves of causal-importance functions is not read"):
        convert(JAX / "sites", tmp_path / "m.onnx", **given, gates="exact")


def test_stacks(store, tmp_path):
    with pytest.raises(ComponentsError, match=r"V and U of 2 layers .* nothing tells which they are"):
        load_components(JAX / "stacks")
    shutil.copytree(JAX / "stacks", tmp_path / "run")
    targets = [{"module_pattern": name, "C": 10} for name in ("h.10.fc", "h.2.fc", "head")]
    (tmp_path / "run" / "launch_config.yaml").write_text(json.dumps({"pd": {"decomposition_targets": targets}}))
    found = load_components(tmp_path / "run")
    assert list(found.components) == ["h.2.fc", "h.10.fc", "head"]
    assert torch.equal(2 * found.components["h.2.fc"].V, found.components["h.10.fc"].V)


def test_the_older_item_of_a_step_and_half_precision(store):
    found = load_components(JAX / "bf16")
    assert found.components["head"].V.dtype is torch.bfloat16


def test_a_damaged_checkpoint(store, tmp_path):
    shutil.copytree(JAX / "sites", tmp_path / "run")
    inside = tmp_path / "run" / "ckpts" / "7" / "decomposition"
    for file in sorted(inside.rglob("d/*")):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ComponentsError, match="The checkpoint of JAX is damaged"):
        load_components(tmp_path / "run")
    for text in ("{", "[]", '{"tree_metadata": {"a": {}}}', '{"tree_metadata": []}'):
        (inside / "_METADATA").write_text(text)
        with pytest.raises(ComponentsError, match="The checkpoint of JAX is damaged"):
            load_components(tmp_path / "run")
    (inside / "_METADATA").write_text('{"tree_metadata": {}}')
    with pytest.raises(ComponentsError, match="holds no V and U"):
        load_components(tmp_path / "run")


def test_keys_are_paths_of_names():
    """A name may have dots: it is never put together and taken apart."""
    key = [{"key": name} for name in ("components", "vu", "layers.3.mlp", "0")]
    assert _factor_keys({"tree_metadata": {"x": {"key_metadata": key}}}, Path()) == [
        ("components", "vu", "layers.3.mlp", "0")
    ]


def named(*names):
    return RunConfig(files={"launch_config.yaml": {"pd": {"sites": [{"name": name, "C": 4} for name in names]}}})


def test_which_layers_a_stack_is_of():
    assert _layers_of("q_proj", 2, named("layers.11.q_proj", "layers.9.q_proj", "layers.9.k_proj")) == [
        "layers.9.q_proj", "layers.11.q_proj"
    ]  # fmt: skip
    assert _layers_of("q_proj", 3, named("layers.11.q_proj", "layers.9.q_proj")) is None
    assert _layers_of("q_proj", 1, named("layers.*.q_proj")) is None
    assert _layers_of("linear1", 1, RunConfig()) == ["linear1"]
    assert _layers_of("linear1", 2, RunConfig()) is None


def test_experts_blocks_are_refused_with_their_shapes():
    parts = {"V": torch.ones(2, 3, 8, 4), "U": torch.ones(2, 3, 4, 8)}
    with pytest.raises(ComponentsError, match=r"of blocks, as experts have them \(V \(2, 3, 8, 4\)"):
        _unstacked("experts", parts, RunConfig(), Path("run"))


def test_an_export_to_torch_comes_first(tmp_path):
    for name in ("model_900.pth", "model_4000.safetensors", "model_x.pth"):
        (tmp_path / name).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "model_4000.safetensors"
    (tmp_path / "other" / "export").mkdir(parents=True)
    (tmp_path / "other" / "export" / "model_3.safetensors").touch()
    assert last_checkpoint(tmp_path / "other") == tmp_path / "other" / "export" / "model_3.safetensors"
    assert last_orbax(tmp_path) is None
    assert last_orbax(JAX / "sites") == JAX / "sites" / "ckpts" / "7" / "decomposition"


def test_an_export_of_a_run_of_jax(tmp_path):
    """Its names are those of the language models of SPD's torch code, and its configuration is one folder above."""
    state = torch.load(KINDS / "global_mlp" / "model_100.pth", weights_only=True)
    exported = {}
    for key, tensor in state.items():
        prefix, name, *rest = key.split(".")
        if prefix == "ci_fn":
            exported[key] = tensor
        elif prefix == "_components" and rest != ["bias"]:
            exported[f"model.{name.replace('-', '.')}.components.{rest[0]}"] = tensor
        elif prefix == "target_model":
            layer, _, last = key.removeprefix("target_model.").rpartition(".")
            exported[f"model.{layer}.{'target_weight' if last == 'weight' else last}"] = tensor
    from safetensors.torch import save_file

    (tmp_path / "export").mkdir()
    save_file(exported, tmp_path / "export" / "model_100.safetensors")
    (tmp_path / "launch_config.yaml").write_text("pd: {sigmoid_type: leaky_hard, ci_config: {mode: global}}\n")
    import onnxruntime

    with np.load(KINDS / "global_mlp.gold.npz") as archive:
        right = dict(archive)
    for number, source in enumerate((tmp_path, tmp_path / "export" / "model_100.safetensors")):
        out = tmp_path / f"{number}.onnx"
        convert(
            source, out, factory=f"{KINDS / 'targets.py'}:MLP", inputs=KINDS / "global_mlp.x.npz", gates="exact",
            delta="drop", verify=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": right["x"]})[0]
        np.testing.assert_allclose(found, right["y"], rtol=0, atol=1e-5)
