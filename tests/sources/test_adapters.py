"""Adapters beside a dense model: those of peft and LyCORIS are merged to what they act as; the rest is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from spdexport.cli import main
from spdexport.errors import ComponentsError
from spdexport.pipeline import convert
from spdexport.sources.adapters import read_adapters
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from torch import nn

DATA = Path(__file__).parents[1] / "data/adapters"
FILES = {
    "peft_lora": "peft_lora/adapter_model.safetensors",
    "peft_rslora": "peft_rslora/adapter_model.safetensors",
    "peft_loha": "peft_loha/adapter_model.safetensors",
    "peft_lokr": "peft_lokr/adapter_model.safetensors",
    "peft_patterns": "peft_patterns/adapter_model.safetensors",
    "peft_patterns_rslora": "peft_patterns_rslora/adapter_model.safetensors",
    "peft_patterns_loha": "peft_patterns_loha/adapter_model.safetensors",
    "peft_patterns_lokr": "peft_patterns_lokr/adapter_model.safetensors",
    "peft_biased": "peft_biased/adapter_model.safetensors",
    "lycoris_locon": "lycoris_locon.safetensors",
    "lycoris_loha": "lycoris_loha.safetensors",
    "lycoris_loha_flat": "lycoris_loha_flat.safetensors",
    "lycoris_lokr": "lycoris_lokr.safetensors",
    "lycoris_lokr_whole": "lycoris_lokr_whole.safetensors",
    "peft_dora_convs": "peft_dora_convs/adapter_model.safetensors",
    "lycoris_dora": "lycoris_dora.safetensors",
    "lycoris_dora_inputs": "lycoris_dora_inputs.safetensors",
    "lycoris_dora_loha": "lycoris_dora_loha.safetensors",
}


def written(kind: str) -> nn.Module:
    """A network of the script that wrote the files, with the weights that it had."""
    spec = importlib.util.spec_from_file_location("write_adapters", DATA / "write_adapters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: nn.Module = getattr(module, kind)().eval()
    made.load_state_dict(load_file(DATA / f"{'model' if kind == 'Net' else 'grouped'}.safetensors"))
    return made


def net() -> nn.Module:
    return written("Net")


def converted(out: Path, components: Path, **options: object) -> dict[str, torch.Tensor]:
    """The weights of the file that a conversion with components writes."""
    result = convert(net(), out, components=components, input_shape="2x3x9x9", **options)
    assert result.verification is None or result.verification.verdict is Status.PASS
    if out.suffix == ".pt2":
        return dict(torch.export.load(out).state_dict)
    graph = ir.load(out).graph
    return {name: torch.tensor(value.const_value.numpy()) for name, value in graph.initializers.items()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.sampled(6)
def test_an_adapter_is_merged_as_its_library_does(tmp_path: Path, name: str) -> None:
    merged = load_file(DATA / "merged.safetensors")
    found = converted(tmp_path / "out.pt2", DATA / FILES[name])
    for layer in ("body.0", "body.2", "head"):
        right = merged[f"{name}/{layer}.weight"]
        assert (found[f"{layer}.weight"] - right).abs().max() <= 2e-7 * right.abs().max() * 4, layer
        wrong = (found[f"{layer}.bias"] - merged[f"{name}/{layer}.bias"]).abs().max()
        assert wrong <= (2e-7 if name == "peft_biased" else 0), layer


def every_channel(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The kernel of a convolution with groups, zeros where an output does not read a channel."""
    groups = channels // weight.shape[1]
    whole = torch.zeros(len(weight), channels, *weight.shape[2:])
    for index in range(len(weight)):
        first = index // (len(weight) // groups) * weight.shape[1]
        whole[index, first : first + weight.shape[1]] = weight[index]
    return whole


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", ["peft_loha_groups", "lora"])
def test_an_adapter_of_a_layer_with_groups(tmp_path: Path, name: str, ending: str) -> None:
    """peft's LoHa has the groups of the layer; its LoRA reads all channels, and may leave those of others alone."""
    out, path = tmp_path / f"out{ending}", DATA / name / "adapter_model.safetensors"
    if name == "lora":
        down, up = torch.randn(2, 4, 3, 3), torch.randn(6, 1, 1, 1)
        down[0, 2:], down[1, :2] = 0, 0
        path = tmp_path / "a.safetensors"
        save_file({"body.0.lora_A.weight": down, "body.0.lora_B.weight": up, "body.0.alpha": torch.tensor(1.0)}, path)
        right = every_channel(written("Grouped").state_dict()["body.0.weight"], 4)
        right = right + 0.5 * up.reshape(6, 1, 1, 1) * down.repeat_interleave(3, dim=0)
    else:
        right = load_file(DATA / "merged.safetensors")[f"{name}/body.0.weight"]
    result = convert(written("Grouped"), out, components=path, input_shape="2x4x9x9")
    assert result.verification.verdict is Status.PASS
    if ending == ".pt2":
        found = torch.export.load(out).state_dict["body.0.weight"]
    else:
        found = torch.tensor(ir.load(out).graph.initializers["body.0.weight"].const_value.numpy())
    assert (every_channel(found, 4) - right).abs().max() <= 1e-6 * right.abs().max()


def test_a_lora_across_groups_is_refused(tmp_path: Path) -> None:
    """What peft trains beside a layer with groups is a layer without; nor does peft merge it."""
    with pytest.raises(ComponentsError) as caught:
        convert(
            written("Grouped"), tmp_path / "out.onnx", components=DATA / "peft_lora_groups/adapter_model.safetensors",
            input_shape="2x4x9x9",
        )  # fmt: skip
    assert "reads channels of all groups for each output, which has no place in the weight of body." in str(
        caught.value
    )


def test_an_onnx_file_takes_them_too_and_the_summary_tells(tmp_path: Path) -> None:
    factory = f"{DATA / 'write_adapters.py'}:Net"
    command = ["convert", str(DATA / "model.safetensors"), "--factory", factory, "--components",
               str(DATA / FILES["peft_lora"]), "--input-shape", "2x3x9x9", "-o", f"{tmp_path}/out.onnx"]  # fmt: skip
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "LoRA times 1.5 is added to the weight: body.0, body.2, head" in " ".join(result.output.split())


def test_an_onnx_source_takes_an_adapter(tmp_path: Path) -> None:
    convert(net(), tmp_path / "dense.onnx", form="dense", input_shape="2x3x9x9", verify=False)
    result = convert(tmp_path / "dense.onnx", tmp_path / "out.onnx", components=DATA / FILES["lycoris_locon"])
    assert result.verification.verdict is Status.PASS
    right = load_file(DATA / "merged.safetensors")["lycoris_locon/body.0.weight"]
    found = ir.load(tmp_path / "out.onnx").graph.initializers["body.0.weight"].const_value.numpy()
    assert abs(found - right.numpy()).max() <= 1e-6


# --- factors whose names do not tell which is which ---


def factor_file(tmp_path: Path, **parts: torch.Tensor) -> Path:
    save_file({f"body.2.{name}": t.contiguous() for name, t in parts.items()}, tmp_path / "factors.safetensors")
    return tmp_path / "factors.safetensors"


def product(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    V, U = (weights[f"body.2.{name}"].double() for name in "VU")
    return U.reshape(8, -1) @ V.reshape(-1, 6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_and_b_are_told_by_their_shapes(tmp_path: Path, transposed: bool, swapped: bool) -> None:
    reads, writes = torch.randn(6, 3), torch.randn(3, 8)
    parts = (reads.T, writes.T) if transposed else (reads, writes)
    a, b = parts[::-1] if swapped else parts
    found = converted(tmp_path / "out.pt2", factor_file(tmp_path, A=a, B=b), form="factorized", delta="drop")
    assert (product(found) - (reads.double() @ writes.double()).T).abs().max() <= 1e-5


def test_u_s_and_v_are_a_singular_value_decomposition(tmp_path: Path) -> None:
    weight = load_file(DATA / "model.safetensors")["body.2.weight"].reshape(8, 6)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    for V in (Vh[:4], Vh[:4].T):
        path = factor_file(tmp_path, U=U[:, :4], S=S[:4], V=V)
        found = converted(tmp_path / "out.pt2", path, form="factorized", delta="drop")
        assert (product(found) - U[:, :4].double() * S[:4] @ Vh[:4].double()).abs().max() <= 1e-5


def refused(path: Path, *texts: str) -> None:
    with pytest.raises(ComponentsError) as caught:
        convert(net(), path.parent / "out.onnx", components=path, input_shape="2x3x9x9")
    for text in texts:
        assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_shapes_that_fit_in_several_ways_are_refused(tmp_path: Path) -> None:
    refused(
        factor_file(tmp_path, A=torch.randn(6, 6), B=torch.randn(6, 8)),
        "fit body.2 (conv2d 6>8 1x1) in 2 ways: A reads the input and B writes the output; or A transposed reads",
        "Write them as V (6, C) and U (C, 8), whose names say which is which.",
    )


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refused(factor_file(tmp_path, A=torch.randn(5, 2), B=torch.randn(2, 8)), "A and B of shapes", "do not fit body.2")


def test_a_scale_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    shutil.copy(DATA / FILES["peft_lora"], tmp_path / "adapter.safetensors")
    refused(
        tmp_path / "adapter.safetensors",
        "What the adapter of base_model.model.body.0 is multiplied with is not known",
        "Put adapter_config.json, with lora_alpha and r, beside the file",
    )


# --- peft's configuration ---


def with_settings(tmp_path: Path, kind: str, **changed: object) -> Path:
    """An adapter of a kind beside its configuration with some settings changed."""
    shutil.copy(DATA / f"peft_{kind}/adapter_model.safetensors", tmp_path)
    config = json.loads((DATA / f"peft_{kind}/adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    return tmp_path / "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bias": "lora_only"}, "has bias: biases were trained, too"),
        ({"modules_to_save": ["head"]}, "has modules_to_save: other layers were trained whole"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "has layer_replication: the layers are those of a model in which"),
        ({"use_qalora": True}, "has use_qalora: the adapter reads means of several inputs"),
        ({"use_bdlora": {"nblocks": 2}}, "has use_bdlora: the factors hold nothing but the blocks"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens: the adapter acts on tokens behind"),
        ({"target_parameters": ["head.weight"]}, "has target_parameters: parameters have an adapter"),
        ({"trainable_token_indices": [3]}, "has trainable_token_indices: rows of an embedding"),
        ({"arrow_config": {"top_k": 1}}, "has arrow_config: the adapter is chosen for each token"),
        ({"kasa_config": {"beta": 1e-4}}, "has kasa_config: singular values stand between the factors"),
        ({"monteclora_config": {"samples": 2}}, "has monteclora_config: the factors are drawn at random"),
        ({"velora_config": {"scale": 1}}, "has velora_config: the adapter was trained on compressed activations"),
        ({"megatron_config": {"hidden_size": 8}}, "has megatron_config: the factors are parts of what"),
        ({"ensure_weight_tying": True}, "has ensure_weight_tying: the adapter is of several layers at once"),
        ({"use_sorcery": 1}, "has use_sorcery: it is not known here what that does to the weights"),
        ({"peft_type": "ADALORA"}, "another kind of adapter: peft_type is ADALORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights pissa_niter_4, for which peft takes"),
        ({"init_lora_weights": "olora"}, "has init_lora_weights olora, for which peft takes"),
        ({"use_dora": True}, "has use_dora, and base_model.model.body.0 has no lora_magnitude_vector"),
        ({"lora_bias": True}, "has lora_bias, and base_model.model.body.0 has no lora_B.bias"),
        ({"r": 4}, "gives body.0 the rank 4, and its factors have 2"),
        ({"r": 0}, "gives body.0 a rank below 1: r is 0"),
        ({"r": True}, "says no number for body.0: r is True"),
        ({"r": None}, "says no number for body.0: r is None"),
        ({"lora_alpha": "3"}, "says no number for body.0: lora_alpha is '3'"),
        ({"lora_alpha": float("nan")}, "says no number for body.0: lora_alpha is nan"),
        ({"rank_pattern": {"head": 3}}, "gives head the rank 3, and its factors have 2"),
        ({"rank_pattern": [3]}, "rank_pattern is no table of names and numbers"),
        ({"alpha_pattern": {"head": None}}, "says no number for head: alpha_pattern of head is None"),
        ({"alpha_pattern": {"he(ad": 3}}, "'he(ad' of alpha_pattern is no regular expression"),
        ({"alpha_pattern": {"(o+)+x": 3}}, "To look for '(o+)+x' of alpha_pattern in the names of layers could take"),
        ({"alpha_pattern": {r"(.)\1": 3}}, "could take too long"),
        ({"alpha_pattern": {"(?i:head)": 3}}, "could take too long"),
        ({"alpha_pattern": {".*" * 200 + "x": 3}}, "could take too long"),
        ({"alpha_pattern": {"(|b|)" * 30 + "x": 3}}, "could take too long"),
        ({"alpha_pattern": {"a{1,99999999999999999999}": 3}}, "is no regular expression"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)  # fmt: skip
def test_a_setting_of_peft_that_makes_other_weights_is_refused(
    tmp_path: Path, settings: dict[str, object], text: str
) -> None:
    refused(with_settings(tmp_path, "lora", **settings), text)


@pytest.mark.parametrize(
    "settings",
    [
        {"fan_in_fan_out": True, "lora_dropout": 0.5, "target_modules": "all-linear", "init_lora_weights": "eva"},
        {"init_lora_weights": "gaussian", "layers_to_transform": [0], "qalora_group_size": 4},
        {"bias": "none", "use_sorcery": None, "another": False, "more": {}, "most": []},
        {"alpha_pattern": {"tail": 9, "ody.0": 9, "body": 9, "body.0.": 9}, "rank_pattern": {"0.*0": 9}},
    ],
)
def test_a_setting_that_makes_no_other_weights_is_none_here(tmp_path: Path, settings: dict[str, object]) -> None:
    """How it was trained, which layers it is of, what is switched off, and patterns that match no layer."""
    found = converted(tmp_path / "out.pt2", with_settings(tmp_path, "lora", **settings), verify=False)
    right = load_file(DATA / "merged.safetensors")
    for layer in ("body.0", "body.2", "head"):
        assert (found[f"{layer}.weight"] - right[f"peft_lora/{layer}.weight"]).abs().max() <= 1e-6, layer


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("head", True), ("ea.", False), (".*ead", True), ("^head", True), ("head$", True), ("head|body", True),
        (r"he\w+", True), ("[gh]ead", True), ("hea", False), ("base_model.model.head", False), ("x?head", True),
        ("he(?:ad|re)", True), ("h.{1,3}d", True), ("(head)?", True),
    ],
)  # fmt: skip
def test_a_pattern_is_the_end_of_a_layers_name(pattern: str, matches: bool) -> None:
    """As of peft: an expression that matches the whole name, or what stands behind one of its dots."""
    config = json.loads((DATA / "peft_lora/adapter_config.json").read_text()) | {"alpha_pattern": {pattern: 8, "d": 9}}
    adapters = read_adapters(load_file(DATA / FILES["peft_lora"]), config, "adapter_model.safetensors")
    assert adapters is not None
    assert {layer: raw.scale for layer, raw in adapters.layers.items()} == {
        "body.0": 1.5, "body.2": 1.5, "head": 4 if matches else 1.5,
    }  # fmt: skip


def test_the_summary_tells_the_scale_of_each_layer(tmp_path: Path) -> None:
    result = convert(
        net(), tmp_path / "out.onnx", components=DATA / FILES["peft_patterns"], input_shape="2x3x9x9", verify=False
    )
    notes = " ".join(result.notes)
    for layer, scale in (("body.0", 5 / 3), ("body.2", 3 / 4), ("head", 7 / 2)):
        assert f"LoRA times {scale:g} is added to the weight: {layer}" in notes


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = with_settings(tmp_path, "lora")
    (tmp_path / "adapter_config.json").write_text("[2, 3]")
    refused(path, "The configuration is no JSON object.")


@pytest.mark.parametrize(("alpha", "text"), [(3.0, None), (2.0, "the alpha 3, and the file of the weights 2")])
def test_an_alpha_in_both_files_is_one(tmp_path: Path, alpha: float, text: str | None) -> None:
    path = with_settings(tmp_path, "rslora")
    save_file({**load_file(path), "base_model.model.head.alpha": torch.tensor(alpha)}, path)
    if text is not None:
        refused(path, f"gives head {text}")
        return
    found = converted(tmp_path / "out.pt2", path, verify=False)["head.weight"]
    assert (found - load_file(DATA / "merged.safetensors")["peft_rslora/head.weight"]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("bias", "text"), [(True, "of shape 4 to head, which has a bias of 5 numbers"), (False, "no bias")]
)
def test_a_bias_of_a_lora_needs_one_of_its_layer(tmp_path: Path, bias: bool, text: str) -> None:
    path = with_settings(tmp_path, "biased")
    tensors = load_file(path)
    if bias:
        tensors["base_model.model.head.lora_B.bias"] = torch.ones(4)
    save_file(tensors, path)
    model = net()
    if not bias:
        model.head = torch.nn.Linear(8, 5, bias=False)
    with pytest.raises(ComponentsError) as caught:
        convert(model, tmp_path / "out.onnx", components=path, input_shape="2x3x9x9")
    assert text in str(caught.value)


def test_a_bias_of_the_other_factor_is_none_of_peft(tmp_path: Path) -> None:
    path = with_settings(tmp_path, "biased")
    save_file({**load_file(path), "base_model.model.head.lora_A.bias": torch.ones(2)}, path)
    refused(path, "base_model.model.head.lora_A.bias, which is no part of an adapter")


class Conv1D(torch.nn.Module):
    """A linear layer as GPT-2 of Hugging Face stores it: inputs first, which peft calls ``fan_in_fan_out``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4))
        self.bias = torch.nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.reshape(-1, 6), self.weight).reshape(*x.shape[:-1], 4)


@pytest.mark.parametrize("told", [True, False])
def test_an_adapter_of_a_layer_that_stores_inputs_first(tmp_path: Path, told: bool) -> None:
    """``lora_A`` reads the input and ``lora_B`` writes the output either way; peft turns their product around."""
    model = torch.nn.Sequential(Conv1D()).eval()
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    save_file({"base_model.model.0.lora_A.weight": down, "base_model.model.0.lora_B.weight": up},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "fan_in_fan_out": told}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    convert(model, tmp_path / "out.pt2", components=tmp_path / "adapter_model.safetensors", input_shape="2x3x6",
            verify=False)  # fmt: skip
    x = torch.randn(2, 3, 6)
    right = model(x) + 3 * (x @ down.T @ up.T)
    assert (torch.export.load(tmp_path / "out.pt2").module()(x) - right).abs().max() <= 1e-5


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_file(
        {"body.2.oft_R.weight": torch.ones(2, 2), "head.lora_A.weight": torch.ones(2, 8)}, tmp_path / "a.safetensors"
    )
    refused(tmp_path / "a.safetensors", "body.2.oft_R.weight, which is no part of an adapter")


def test_the_summary_tells_of_magnitudes(tmp_path: Path) -> None:
    result = convert(
        net(), tmp_path / "out.onnx", components=DATA / "peft_dora/adapter_model.safetensors", input_shape="2x3x9x9"
    )  # fmt: skip
    assert result.verification.verdict is Status.PASS
    right = load_file(DATA / "merged.safetensors")["peft_dora/head.weight"]
    found = ir.load(tmp_path / "out.onnx").graph.initializers["head.weight"].const_value.numpy()
    assert abs(found - right.numpy()).max() <= 1e-6
    notes = " ".join(result.notes)
    assert "LoRA times 1.5 is added to the weight, which is then brought to DoRA's magnitudes: head" in notes


LORA = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({**LORA, "dora_scale": torch.ones(7, 1, 1, 1)}, "does not fit body.2"),
        ({**LORA, "dora_scale": torch.ones(8, 6, 1, 1)}, "does not fit body.2"),
        ({**LORA, "dora_scale": torch.tensor(1.0)}, "does not fit body.2"),
        ({**LORA, "dora_scale": torch.full((8, 1, 1, 1), float("nan"))}, "holds no finite floats"),
        ({**LORA, "lora_magnitude_vector": torch.ones(6)}, "does not fit body.2"),
        ({"A": torch.ones(6, 2), "B": torch.ones(2, 8), "dora_scale": torch.ones(8, 1, 1, 1)}, "is no part"),
        ({"dora_scale": torch.ones(8, 1, 1, 1), "alpha": torch.tensor(1.0)}, "no adapter|no part"),
    ],
)
def test_magnitudes_that_do_not_fit_are_refused(tmp_path: Path, parts: dict[str, torch.Tensor], text: str) -> None:
    save_file({f"body.2.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ComponentsError) as caught:
        convert(net(), tmp_path / "out.onnx", components=tmp_path / "a.safetensors", input_shape="2x3x9x9")
    assert any(part in str(caught.value) for part in text.split("|")) or text == "no adapter|no part"
    assert not (tmp_path / "out.onnx").exists()


def test_a_weight_of_zeros_has_no_direction(tmp_path: Path) -> None:
    weight = load_file(DATA / "model.safetensors")["body.2.weight"].reshape(8, 6)
    parts = {"lora_A.weight": torch.eye(6), "lora_B.weight": -weight, "lora_magnitude_vector": torch.ones(8),
             "alpha": torch.tensor(6.0)}  # fmt: skip
    save_file({f"body.2.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "leaves nothing but zeros of an output of body.2")


def test_dora_without_its_magnitudes_is_refused(tmp_path: Path) -> None:
    tensors = load_file(DATA / "peft_dora/adapter_model.safetensors")
    shutil.copy(DATA / "peft_dora/adapter_config.json", tmp_path)
    save_file({k: t for k, t in tensors.items() if "magnitude" not in k}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path / "adapter_model.safetensors", "has use_dora, and base_model.model.head has no lora_magnitude")


@pytest.mark.parametrize(
    ("down", "up", "dora", "text"),
    [
        (
            (2, 2, 3, 3),
            (6, 2, 1, 1),
            False,
            "is a product of the stored weight, or convolutions in a row",
        ),
        ((2, 4, 3, 3), (6, 1, 1, 1), True, "reads channels of all groups for each output"),
        ((2, 3, 3, 3), (6, 1, 1, 1), False, "does not fit body.0"),
        ((2, 2, 3, 3), (6, 1, 1, 1), False, None),
    ],
)
def test_factors_of_a_layer_with_groups_are_read_by_their_shapes(
    tmp_path: Path, down: tuple[int, ...], up: tuple[int, ...], dora: bool, text: str | None
) -> None:
    parts = {"lora_down.weight": torch.randn(down), "lora_up.weight": torch.randn(up)}
    parts |= {"dora_scale": torch.ones(6, 1, 1, 1)} if dora else {}
    path = tmp_path / "a.safetensors"
    save_file({f"body.0.{name}": tensor for name, tensor in parts.items()}, path)
    model = written("Grouped")
    if text is not None:
        with pytest.raises(ComponentsError) as caught:
            convert(model, tmp_path / "out.pt2", components=path, input_shape="2x4x9x9")
        assert text in str(caught.value)
        return
    convert(model, tmp_path / "out.pt2", components=path, input_shape="2x4x9x9", verify=False)
    found = torch.export.load(tmp_path / "out.pt2").state_dict["body.0.weight"]
    own, first = model.state_dict()["body.0.weight"], parts["lora_down.weight"]
    for index in range(6):
        group = index // 3
        right = own[index] + parts["lora_up.weight"][index, 0] * first[group]
        assert (found[index] - right).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lora_up.weight": None}, "has no up of its LoRA"),
        ({"lora_up.weight": torch.full((8, 2), float("nan"))}, "holds no finite floats"),
        ({"lora_up.weight": torch.randn(7, 2)}, "does not fit body.2"),
        ({"lora_up.weight": torch.randn(8, 3)}, "does not fit body.2"),
        ({"hada_w1_a": torch.randn(8, 2)}, "has two adapters"),
        ({"lora_up.weight": torch.full((8, 2), 3e38)}, "is beyond the range of float32"),
    ],
)
def test_damaged_adapters_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None], text: str) -> None:
    parts = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.randn(8, 2), **change}
    save_file({f"body.2.{k}": t for k, t in parts.items() if t is not None}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", text)


def test_a_layer_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    parts = {"lora_unet_body_9.lora_down.weight": torch.ones(2, 6), "lora_unet_body_9.lora_up.weight": torch.ones(8, 2)}
    save_file(parts, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "components for body_9, and the model has no such layer")
