from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

from spdexport.sources.spd import from_state_dict
from spdexport.sources.spd_layouts import LAYOUTS, recognize

if TYPE_CHECKING:
    from collections.abc import Callable

State = dict[str, torch.Tensor]

# The digits model has flat names; layers in a submodule are where '.' and '-' differ.
DEEPER = {"fc1": "head.fc1", "fc2": "head.fc2"}


def nested(state: State) -> State:
    """The run as it would be with fc1 and fc2 inside a submodule called head."""
    result = {}
    for key, tensor in state.items():
        prefix, layer, *rest = key.split(".")
        name = DEEPER.get(layer, layer)
        if prefix != "target_model":
            name = name.replace(".", "-")
        result[".".join((prefix, name, *rest))] = tensor
    return result


def rename(state: State, *rules: tuple[str, str]) -> State:
    result = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    return result


def in_place(state: State) -> State:
    components = {k.split(".")[1] for k in state if k.startswith("_components.")}
    result = {}
    for key, tensor in state.items():
        prefix, rest = key.split(".", 1)
        if prefix == "_components":
            dashed, factor = rest.split(".")
            result[f"patched_model.{dashed.replace('-', '.')}.components.{factor}"] = tensor
        elif prefix == "_ci_fns":
            result[f"_gates.{rest}"] = tensor
        else:
            layer, _, parameter = rest.rpartition(".")
            original = ".original" if layer.replace(".", "-") in components else ""
            result[f"patched_model.{layer}{original}.{parameter}"] = tensor
    return result


OLDER: dict[str, Callable[[State], State]] = {
    "paper": lambda s: rename(
        s,
        (r"^target_model\.", "model."),
        (r"^_components\.([^.]+)\.V$", r"components.\1.A"),
        (r"^_components\.([^.]+)\.U$", r"components.\1.B"),
        (r"^_components\.", "components."),
        (r"^_ci_fns\.([^.]+)\.linear\.W", r"gates.\1.weight"),
        (r"^_ci_fns\.([^.]+)\.linear\.b", r"gates.\1.bias"),
    ),
    "2025-07-16": lambda s: rename(
        s, (r"^target_model\.", "model."), (r"^_components\.", "components."), (r"^_ci_fns\.", "gates.")
    ),
    "2025-07-22": in_place,
    "2025-09-23": lambda s: rename(s, (r"^_ci_fns\.", "_gates.")),
    "current": dict,
    "dev": lambda s: rename(s, (r"^_ci_fns\.", "ci_fn._ci_fns.")),
    "language model": lambda s: in_tree(s),
    "fused": lambda s: fused(s),
    "nano": lambda s: nano(s),
}

# Written from descriptions of what the code saves, which could not be run here.
NEW = ("language model", "fused", "nano")


def dotted(state: State) -> tuple[dict[str, str], State]:
    """The names of decomposed layers by their dashed forms, and the dense weights."""
    dense = {k.removeprefix("target_model."): t for k, t in state.items() if k.startswith("target_model.")}
    layers = {k.split(".")[1] for k in state if k.startswith("_components.")}
    return {n.rpartition(".")[0].replace(".", "-"): n.rpartition(".")[0] for n in dense if n.endswith(".weight")} | {
        x: x for x in layers if "-" not in x
    }, dense


def in_tree(state: State) -> State:
    names, dense = dotted(state)
    components = {names[k.split(".")[1]] for k in state if k.startswith("_components.")}
    result = {}
    for name, tensor in dense.items():
        layer, _, last = name.rpartition(".")
        last = "target_weight" if layer in components and last == "weight" else last
        result[f"model.{layer}.{last}"] = tensor
    for key, tensor in state.items():
        prefix, name, *rest = key.split(".")
        if prefix == "_components":
            result[f"model.{names[name]}.components.{'.'.join(rest)}"] = tensor
        elif prefix == "_ci_fns":
            result[f"ci_fn.{key}"] = tensor
    return result


def fused(state: State) -> State:
    names, dense = dotted(state)
    components = {names[k.split(".")[1]] for k in state if k.startswith("_components.")}
    result = {}
    for name, tensor in dense.items():
        layer, _, last = name.rpartition(".")
        result[f"target_model.{layer}{'.linear' if layer in components else ''}.{last}"] = tensor
    for key, tensor in state.items():
        prefix, name, *rest = key.split(".")
        if prefix == "_components" and rest != ["bias"]:
            result[f"target_model.{names[name]}.{rest[0]}"] = tensor
        elif prefix == "_ci_fns":
            result[f"ci_fn.{key}"] = tensor
    return result


def nano(state: State) -> State:
    names, dense = dotted(state)
    components = {names[k.split(".")[1]] for k in state if k.startswith("_components.")}
    result = {}
    for name, tensor in dense.items():
        layer, _, last = name.rpartition(".")
        result[f"{layer}.{'W_target' if layer in components and last == 'weight' else last}"] = tensor
    for key, tensor in state.items():
        prefix, name, *rest = key.split(".")
        if prefix == "_components" and rest != ["bias"]:
            result[f"{names[name]}.{rest[0]}"] = tensor
    return result


@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("layout", OLDER)
def test_every_layout_gives_the_same_components_and_target(state: State, layout: str, wrapper: str) -> None:
    state = nested(state) | {"target_model.norm.original.weight": torch.ones(3)}
    found = from_state_dict({wrapper + key: tensor for key, tensor in OLDER[layout](state).items()}, None)
    assert found is not None
    assert (found.kind, found.layout, found.dashed) == ("spd", layout, layout not in ("2025-07-22", *NEW))
    separator = "-" if found.dashed else "."
    assert set(found.components) == {"conv1", "conv2", "conv3", f"head{separator}fc1", f"head{separator}fc2"}
    for name, raw in found.components.items():
        key = f"_components.{name.replace('.', '-')}"
        assert torch.equal(raw.V, state[f"{key}.V"])
        assert torch.equal(raw.U, state[f"{key}.U"])
    expected = {k.removeprefix("target_model."): t for k, t in state.items() if k.startswith("target_model.")}
    assert set(found.target) == set(expected)
    assert all(torch.equal(found.target[k], t) for k, t in expected.items())
    assert found.identity == ()
    assert found.sha256 is None


def test_the_table_is_what_is_tested() -> None:
    assert {layout.name for layout in LAYOUTS} == {*OLDER, "learned"}


def test_what_was_learned_alone(state: State) -> None:
    learned = {k: t for k, t in OLDER["dev"](state).items() if not k.startswith("target_model.")}
    found = from_state_dict(learned, None)
    assert (found.layout, dict(found.target), len(found.components), len(found.gates)) == ("learned", {}, 5, 5)
    trained = {k: t for k, t in in_tree(state).items() if ".components." in k or k.startswith("ci_fn.")}
    found = from_state_dict(trained, None)
    assert (found.layout, dict(found.target), len(found.components)) == ("language model", {}, 5)


def test_nanos_container_has_the_target_below_a_name_of_its_own(state: State) -> None:
    inside = {f"target.{k}": t for k, t in nano(state).items()} | {"ci_fn.proj_in.weight": torch.ones(3, 2)}
    found = from_state_dict(inside, None)
    assert (found.layout, len(found.components), found.gates.is_global) == ("nano", 5, True)
    assert "conv1.weight" in found.target


def test_a_global_causal_importance_function_is_dev(state: State) -> None:
    state = {k: t for k, t in state.items() if not k.startswith("_ci_fns.")}
    assert recognize(state | {"ci_fn._global_ci_fn.layers.0.W": torch.ones(1)}).name == "dev"
    assert recognize(state).name == "current"


def test_identity_of_the_newer_layouts(state: State) -> None:
    eye = {"_components.fc1-pre_identity.V": torch.eye(512), "_components.fc1-pre_identity.U": torch.eye(512)}
    found = from_state_dict(state | eye, None)
    assert found.identity == ("fc1",)
    assert set(found.components) == {"conv1", "conv2", "conv3", "fc1", "fc2", "fc1-pre_identity"}


def test_identity_of_the_patched_layout(state: State) -> None:
    patched = in_place(state)
    eye = {f"patched_model.fc1.identity_components.{factor}": torch.eye(512) for factor in "VU"}
    # A layer may have inserted identity components only.
    only = {k: t for k, t in patched.items() if not k.startswith("patched_model.fc1.components.")}
    for keys in (patched | eye, only | eye):
        found = from_state_dict(keys, None)
        assert found.identity == ("fc1",)
        assert "fc1.weight" in found.target
        assert not any("components" in name or "original" in name for name in found.target)
    assert set(found.components) == {"conv1", "conv2", "conv3", "fc2", "fc1.pre_identity"}


@pytest.mark.parametrize(
    "keys",
    [
        ("conv1.weight", "conv1.bias"),
        ("target_model.conv1.weight", "target_model.conv1.bias"),
        ("conv1.V", "conv1.U"),
        ("model.conv1.weight", "components.conv1.V", "components.conv1.U"),
        ("model.layers.0.lora.A", "model.layers.0.lora.B"),
        (),
    ],
)
def test_other_keys_are_no_layout(keys: tuple[str, ...]) -> None:
    assert recognize(keys) is None
    assert from_state_dict({key: torch.ones(1) for key in keys}, None) is None
