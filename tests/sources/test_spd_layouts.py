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
}


@pytest.mark.parametrize("layout", OLDER)
def test_every_layout_gives_the_same_components_and_target(state: State, layout: str) -> None:
    state = nested(state) | {"target_model.norm.original.weight": torch.ones(3)}
    found = from_state_dict(OLDER[layout](state), None)
    assert found is not None
    assert (found.kind, found.layout, found.dashed) == ("spd", layout, layout != "2025-07-22")
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
    assert {layout.name for layout in LAYOUTS} == set(OLDER)


def test_a_global_causal_importance_function_is_dev(state: State) -> None:
    state = {k: t for k, t in state.items() if not k.startswith("_ci_fns.")}
    assert recognize(state | {"ci_fn._global_ci_fn.layers.0.W": torch.ones(1)}).name == "dev"
    assert recognize(state).name == "current"


def test_identity_of_the_newer_layouts(state: State) -> None:
    eye = {"_components.fc1-pre_identity.V": torch.eye(512), "_components.fc1-pre_identity.U": torch.eye(512)}
    found = from_state_dict(state | eye, None)
    assert found.identity == ("fc1",)
    assert set(found.components) == {"conv1", "conv2", "conv3", "fc1", "fc2"}


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
    assert set(found.components) == {"conv1", "conv2", "conv3", "fc2"}


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
