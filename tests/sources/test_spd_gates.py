"""The causal-importance functions of runs: the digits run's golden values, and every key layout."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from spdexport.errors import ComponentsError, UsageError
from spdexport.gates import GateKind, Sigmoid, evaluate
from spdexport.sources.spd import load_components

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples/01_digits/run"
C, D, H = 4, 6, 3
HARD = "sigmoid_type: leaky_hard\n"


def test_the_digits_run_gives_spds_own_importances():
    golden = load_file(ROOT / "tests/data/spd_digits_golden.safetensors")
    components = load_components(RUN)
    assert list(components.gates) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert components.gates.note is None
    V = components.components["conv1"].V.double()
    x = functional.conv2d(golden["input"].double(), V.T.reshape(24, 1, 3, 3), padding=1)
    found = evaluate(components.gates["conv1"], x.permute(0, 2, 3, 1).numpy())
    right = golden["ci/conv1"].numpy()
    assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape))


def parts(rng, kind):
    """The parameters of each kind, as today's layouts have them."""
    if kind == "linear":
        return {"linear.W": tensor(rng, C, 1, 1), "linear.b": tensor(rng, C, 1)}
    sizes = {"mlp": (1, H, 1), "vector_mlp": (D, H, 1), "shared_mlp": (D, H, C)}[kind]
    own = () if kind == "shared_mlp" else (C,)
    found = {}
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        found[f"layers.{2 * number}.W"] = tensor(rng, *own, inner, outer)
        found[f"layers.{2 * number}.b"] = tensor(rng, *own, outer)
    return found


def checkpoint(rng, layout, gate):
    """A checkpoint of one layer ``net.fc`` in a layout, with the given parameters of its function."""
    V, U, weight = tensor(rng, D, C), tensor(rng, C, 5), tensor(rng, 5, D)
    made = {
        "current": ("target_model.net.fc.weight", "_components.net-fc.{}", "VU", "_ci_fns.net-fc."),
        "dev": ("target_model.net.fc.weight", "_components.net-fc.{}", "VU", "ci_fn._ci_fns.net-fc."),
        "2025-09-23": ("target_model.net.fc.weight", "_components.net-fc.{}", "VU", "_gates.net-fc."),
        "2025-07-22": ("patched_model.net.fc.original.weight", "patched_model.net.fc.components.{}", "VU",
                       "_gates.net-fc."),
        "2025-07-16": ("model.net.fc.weight", "components.net-fc.{}", "VU", "gates.net-fc."),
        "paper": ("model.net.fc.weight", "components.net-fc.{}", "AB", "gates.net-fc."),
    }[layout]  # fmt: skip
    dense, factor, (v, u), prefix = made
    state = {dense: weight, factor.format(v): V, factor.format(u): U}
    return {**state, **{prefix + name: value for name, value in gate.items()}}


@pytest.fixture
def loaded(tmp_path):
    def load(state, config=None):
        torch.save(state, tmp_path / "model_10.pth")
        if config is not None:
            (tmp_path / "final_config.yaml").write_text(config)
        return load_components(tmp_path)

    return load


@pytest.mark.parametrize("layout", ["current", "dev", "2025-09-23", "2025-07-22", "2025-07-16"])
@pytest.mark.parametrize("kind", ["mlp", "linear", "vector_mlp", "shared_mlp"])
@pytest.mark.parametrize("sigmoid", [s for s in Sigmoid if s is not Sigmoid.PAPER])
def test_every_kind_in_every_layout(loaded, rng, layout, kind, sigmoid):
    gate = parts(rng, kind)
    config = f"ci_fn_type: {kind}\nsigmoid_type: {sigmoid}\n"
    if layout == "dev":
        config = f"ci_config: {{mode: layerwise, fn_type: {kind}}}\nsigmoid_type: {sigmoid}\n"
    components = loaded(checkpoint(rng, layout, gate), config)
    assert components.layout == layout
    ((name, found),) = components.gates.items()
    assert name in components.components
    assert (found.kind, found.sigmoid, found.components) == (GateKind(kind), sigmoid, C)
    for number, layer in enumerate(found.layers):
        stem = "linear" if kind == "linear" else f"layers.{2 * number}"
        np.testing.assert_array_equal(layer.weight, gate[f"{stem}.W"].numpy())
        np.testing.assert_array_equal(layer.bias, gate[f"{stem}.b"].numpy())


def test_the_paper_branch(loaded, rng):
    x = rng.standard_normal((9, C))
    mlp = {"mlp_in": tensor(rng, C, H), "in_bias": tensor(rng, C, H), "mlp_out": tensor(rng, C, H),
           "out_bias": tensor(rng, C)}  # fmt: skip
    components = loaded(checkpoint(rng, "paper", mlp))
    assert components.gates.note is None
    hidden = functional.gelu(torch.tensor(x)[..., None] * mlp["mlp_in"] + mlp["in_bias"])
    right = (hidden * mlp["mlp_out"]).sum(-1) + mlp["out_bias"]
    right = torch.where(right > 0, right.clamp(max=1), 0.01 * right)
    np.testing.assert_allclose(evaluate(components.gates["net-fc"], x), right.numpy(), rtol=0, atol=1e-12)

    plain = {"weight": tensor(rng, C), "bias": tensor(rng, C)}
    gate = loaded(checkpoint(rng, "paper", plain)).gates["net-fc"]
    right = torch.tensor(x) * plain["weight"] + plain["bias"]
    right = torch.where(right > 0, right.clamp(max=1), 0.01 * right)
    np.testing.assert_allclose(evaluate(gate, x), right.numpy(), rtol=0, atol=1e-12)


def test_without_a_configuration_the_sigmoid_is_asked_for(loaded, rng):
    gates = loaded(checkpoint(rng, "current", parts(rng, "mlp"))).gates
    with pytest.raises(ComponentsError, match="Nothing tells the sigmoid") as caught:
        gates["net-fc"]
    assert "no final_config.yaml, run_config.yaml or launch_config.yaml has a sigmoid_type" in caught.value.where
    assert "--sigmoid leaky_hard" in caught.value.hint
    told = gates.with_sigmoid(Sigmoid.NORMAL)
    assert told["net-fc"].sigmoid is Sigmoid.NORMAL
    assert "is normal, as --sigmoid says" in told.note


NESTED = "pd:\n  sigmoid_type: normal\n  ci_config: {mode: layerwise, fn_type: mlp}\n"


@pytest.mark.parametrize("name", ["final_config.yaml", "run_config.yaml", "launch_config.yaml"])
@pytest.mark.parametrize("config", [NESTED, "a: {b: {c: {sigmoid_type: normal}}}\n", "sigmoid_type: normal\n"])
def test_a_sigmoid_is_found_wherever_it_is(loaded, rng, tmp_path, name, config):
    (tmp_path / name).write_text(config)
    gates = loaded(checkpoint(rng, "current", parts(rng, "mlp"))).gates
    assert gates["net-fc"].sigmoid is Sigmoid.NORMAL
    assert gates.note is None
    assert gates.with_sigmoid(Sigmoid.NORMAL)["net-fc"].sigmoid is Sigmoid.NORMAL
    with pytest.raises(UsageError, match="have the sigmoid normal, not hard"):
        gates.with_sigmoid(Sigmoid.HARD)["net-fc"]


def test_configurations_that_contradict_each_other(loaded, rng, tmp_path):
    (tmp_path / "run_config.yaml").write_text(NESTED)
    gates = loaded(checkpoint(rng, "current", parts(rng, "mlp")), "sigmoid_type: hard\n").gates
    with pytest.raises(ComponentsError, match="has sigmoid_type as 'hard' and as 'normal'"):
        gates["net-fc"]


def test_a_run_without_functions(loaded, rng):
    gates = loaded(checkpoint(rng, "current", {})).gates
    assert (len(gates), list(gates), gates.note) == (0, [], None)
    with pytest.raises(KeyError):
        gates["net-fc"]


def test_a_vector_of_one_entry_is_told_by_the_configuration(loaded, rng):
    gate = {"layers.0.W": tensor(rng, C, 1, H), "layers.0.b": tensor(rng, C, H), "layers.2.W": tensor(rng, C, H, 1),
            "layers.2.b": tensor(rng, C, 1)}  # fmt: skip
    state = checkpoint(rng, "current", gate)
    assert loaded(state, HARD).gates["net-fc"].kind is GateKind.MLP
    assert loaded(state, f"{HARD}ci_fn_type: vector_mlp\n").gates["net-fc"].kind is GateKind.VECTOR_MLP


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"layers.0.W": (D, H), "layers.0.b": (H,)}, "it gives 3 importances for 4 components"),
        ({"layers.0.W": (D, C)}, "it has no parameter '0.b', but 0.W"),
        ({"_input_projector.W": (D, 4), "_input_projector.b": (4,)}, "it has no parameter '_output_head.W'"),
        ({"layers.0.W": (D, C), "layers.0.b": (H,)}, r"has a weight \(6, 4\) and a bias \(3,\)"),
        ({"_inp_projectors.a.W": (D, 4)}, "its groups of layers are told by the configuration alone"),
    ],
)
def test_functions_of_all_layers_that_cannot_be_read(loaded, rng, shapes, what):
    parameters = {f"_global_ci_fn.{name}": tensor(rng, *shape) for name, shape in shapes.items()}
    state = checkpoint(rng, "dev", {})
    components = loaded({**state, **{f"ci_fn.{name}": value for name, value in parameters.items()}}, HARD)
    assert components.gates.is_global
    with pytest.raises(ComponentsError, match=f"function of all layers cannot be read: .*{what}") as caught:
        components.gates.global_function({"net-fc": "net.fc"})
    assert "ci_fn._global_ci_fn.*" in caught.value.where


BAD = [
    ({"layers.0.W": (C, 1, 1)}, "map 0 has W alone"),
    ({"net.0.W": (C, 1, 1)}, "a parameter 'net.0.W', which no known function has"),
    ({"layers.0.W": (C, 1, H), "layers.0.b": (C, H)}, "gives 3 values for each component, not one"),
    ({"layers.0.W": (C, 1, H), "layers.0.b": (C, 2)}, "map 0 has a weight"),
    ({"mlp_in": (C, H), "in_bias": (C, H)}, "it has mlp_in, in_bias where"),
    ({"mlp_in": (C, H), "in_bias": (C, H), "mlp_out": (C, 2), "out_bias": (C,)}, r"mlp_in is \(4, 3\) and mlp_out"),
]


@pytest.mark.parametrize(("shapes", "what"), BAD, ids=[what for _, what in BAD])
def test_functions_that_cannot_be_read(loaded, rng, shapes, what):
    gate = {name: tensor(rng, *shape) for name, shape in shapes.items()}
    components = loaded(checkpoint(rng, "current", gate), HARD)
    with pytest.raises(ComponentsError, match=f"The causal-importance function of net-fc cannot be read: .*{what}"):
        components.gates["net-fc"]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("sigmoid_type: paper\n", "sigmoid_type 'paper', and known are leaky_hard"),
        ("sigmoid_type: tanh\n", "sigmoid_type 'tanh', and known are leaky_hard"),
        ("a: [", "The configuration of the run is no YAML"),
        ("- a\n", "holds no names and values"),
    ],
)
def test_configurations_that_cannot_be_used_matter_to_gates_alone(loaded, rng, config, what):
    components = loaded(checkpoint(rng, "current", parts(rng, "mlp")), config)
    assert list(components.components) == ["net-fc"]
    with pytest.raises(ComponentsError, match=what):
        components.gates["net-fc"]
