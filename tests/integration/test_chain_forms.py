"""Spatial, Tucker-2 and CP forms from the command line to the proof, and faults in each of their stages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_command import spdexport as command
from onnx import numpy_helper
from planting import attribute, drop_bias, one_off, planted, weight

import spdexport
from spdexport.files.atomic import pending
from spdexport.model_files import write_onnx
from spdexport.options import Options
from spdexport.prepare import prepare
from spdexport.routes import TorchRoute
from spdexport.verification import recipes
from spdexport.verification.check import Check
from spdexport.verification.result import Status
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from pathlib import Path

    from planting import Edit

    from spdexport.verification.torch_source import Subject

ROWS = np.array([[int(c) for c in row] for row in ("12301", "01230", "30123", "23012", "12301")], dtype=np.float32)
"""The image of a lesson on digital filters, in which the filter 1 0 -1 gives -2 first."""

CONV2D = torch.nn.Conv2d


def small_net() -> torch.nn.Module:
    """A convolution right behind another, a strided and grouped one, a transposed one, and others without kernels."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        CONV2D(6, 12, 3, padding=1),
        CONV2D(12, 12, (3, 5), stride=2, padding=(1, 2), groups=2, bias=False),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(12, 10, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        CONV2D(10, 6, 1),
    ).eval()


X = torch.randn(2, 6, 11, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def onnx_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an ONNX file."""
    path = tmp_path_factory.mktemp("source") / "dense.onnx"
    spdexport.convert(small_net(), path, inputs=X, form="dense", verify=False)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    return path


def test_the_filter_1_0_minus_1_is_one_pair_of_kernels(tmp_path: Path) -> None:
    kernel = np.broadcast_to(np.array([1.0, 0.0, -1.0], dtype=np.float32), (1, 1, 3, 3))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "filter.weight"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 5, 5])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 3, 3])],
        [numpy_helper.from_array(kernel, "filter.weight")],
    )
    source, file, plan = tmp_path / "filter.onnx", tmp_path / "pair.onnx", tmp_path / "plan.json"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), source)
    made = command("convert", source, "--form", "spatial", "-o", file, "--save-plan", plan)
    assert made.exit_code == 0, made.output
    assert "spatial of rank 1, which holds the weight" in " ".join(made.output.split())
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    assert {name: w.shape for name, w in weights.items()} == {
        "filter.first": (1, 1, 3, 1),
        "filter.second": (1, 1, 1, 3),
    }
    (y,) = onnxruntime.InferenceSession(file).run(None, {"x": ROWS[None, None]})
    assert y[0, 0, 0, 0] == pytest.approx(-2, abs=1e-5)
    (layer,) = json.loads(plan.read_text())["layers"]
    assert (layer["form"], layer["ranks"], layer["truncation"]) == ("spatial", [1], None)
    folded = command("fold", file, "-o", tmp_path / "folded.onnx")
    assert folded.exit_code == 0, folded.output
    (back,) = onnx.load(tmp_path / "folded.onnx").graph.initializer
    assert np.abs(numpy_helper.to_array(back) - kernel).max() < 1e-6


CHOICES: list[tuple[dict[str, Any], list[tuple[str, list[int]]]]] = [
    ({"form": "spatial", "rank": 4}, [("spatial", [4])] * 3 + [("dense", [])]),
    ({"form": "tucker2", "rank": 3}, [("tucker2", [3, 3])] * 3 + [("dense", [])]),
    ({"form": "cp", "rank": 5}, [("cp", [5])] * 3 + [("dense", [])]),
]


@pytest.mark.parametrize(("options", "forms"), CHOICES, ids=["spatial", "tucker2", "cp"])
def test_a_file_is_made_repeated_and_proved(
    options: dict[str, Any], forms: list[tuple[str, list[int]]], onnx_source: Path, tmp_path: Path
) -> None:
    file, plan, again = (tmp_path / name for name in ("o.onnx", "plan.json", "again.onnx"))
    result = spdexport.convert(onnx_source, file, save_plan=plan, **options)
    assert result.verification.verdict == "pass"
    layers = json.loads(plan.read_text())["layers"]
    assert [(layer["form"], layer["ranks"]) for layer in layers] == forms
    assert all((layer["truncation"] is None) == (layer["form"] == "dense") for layer in layers)
    spdexport.convert(onnx_source, again, plan=plan, verify=False)
    assert again.read_bytes() == file.read_bytes()
    assert spdexport.verify(file).verdict == "pass"
    told = spdexport.verify(file, against=onnx_source)
    assert (told.verdict, told.approximation is None) == ("pass", False)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_cp_form_is_folded_back(ending: str, tmp_path: Path) -> None:
    file, folded = tmp_path / f"o{ending}", tmp_path / f"folded{ending}"
    made = spdexport.convert(small_net(), file, inputs=X, form="cp", rank=5)
    assert made.verification.verdict == "pass"
    result = spdexport.fold(file, folded)
    # The first and the second layer follow each other: nothing is between them, and they are one.
    assert sorted(chain.name for chain in result.folded)[-1] == "3"
    assert result.verdict is Status.PASS


def test_auto_takes_them_where_an_error_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "o.onnx"
    result = spdexport.convert(small_net(), file, inputs=X, form="auto", energy=0.5, lane_width=4)
    assert result.verification.verdict == "pass"
    assert {"spatial", "tucker2"} & {layer.form for layer in result.plan.layers}
    assert result.plan.macs_after < result.plan.macs_before


def test_lanes_of_exact_forms_are_padded_and_proved(tmp_path: Path) -> None:
    """Between 3 channels there is nothing to fill 16 with: zeros are, in chains as between V and U."""
    net, rng = torch.nn.Sequential(CONV2D(20, 16, 1), CONV2D(16, 32, 5, padding=2)), np.random.default_rng(0)
    down, across = rng.standard_normal((3, 16, 5)), rng.standard_normal((32, 3, 5))
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(np.einsum("rik,orl->oikl", down, across)))
    file, x = tmp_path / "o.onnx", torch.randn(1, 20, 7, 7)
    result = spdexport.convert(net.eval(), file, inputs=x, form="auto", max_error=0.0)
    assert [(layer.form, layer.ranks, layer.truncation) for layer in result.plan.layers][1] == ("spatial", (3,), None)
    assert result.trimming is not None
    assert list(result.trimming.padded.values()) == [16]
    assert result.verification.verdict == "pass"
    faulty = planted(file, weight("1.second", one_off), tmp_path / "faulty.onnx")
    found = spdexport.verify(faulty, against=net, inputs=x)
    edges = {edge.edge: edge.first_divergence for edge in found.edges if edge.status is Status.FAIL}
    assert edges == {"weights": "1", "export": "1", "optimize": "1"}


def test_what_cannot_take_the_form_says_why(onnx_source: Path) -> None:
    plan = spdexport.inspect(onnx_source, form="tucker2").plan
    assert plan.layers[-1].reason == "it has no tucker2 form, for its kernel is a single tap"


@pytest.mark.parametrize("form", ["spatial", "tucker2", "cp"])
def test_masks_of_run_time_need_components(form: str) -> None:
    told = command("convert", "model.onnx", "--form", form, "--runtime-masks", "all", "-o", "o.onnx")
    assert told.exit_code == 2
    assert f"A {form} layer has no components for a mask to choose among." in told.output
    told = command("convert", "model.onnx", "--form", form, "--masks", "m.json", "--keep-masks", "-o", "o.onnx")
    assert told.exit_code == 2
    assert f"The {form} form has no components for a mask to stay visible on." in told.output


def subject_of(folder: Path, options: dict[str, Any]) -> Subject:
    chosen = Options.of({"inputs": X, **options})
    route = TorchRoute(prepare(small_net(), chosen), chosen)
    with pending(folder / "model.onnx") as output:
        write_onnx(route.model(), output)
    return route.subject(folder / "model.onnx", "model.onnx")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    made = {
        "spatial": {"form": "spatial", "rank": 4},
        "tucker2": {"form": "tucker2", "rank": 3},
        "cp": {"form": "cp", "rank": 5},
    }
    return {name: subject_of(tmp_path_factory.mktemp(name), options) for name, options in made.items()}


FAULTS: list[tuple[str, str, str, Edit]] = [
    ("spatial", "0", "a tap of the first stage off", weight("0.first", one_off)),
    ("spatial", "1", "a tap of the second off", weight("1.second", one_off)),
    ("spatial", "0", "the first stage flipped", weight("0.first", lambda w: w[:, :, ::-1])),
    ("spatial", "3", "the second of a transposed one flipped", weight("3.second", lambda w: w[..., ::-1])),
    ("spatial", "1", "channels between permuted", weight("1.first", lambda w: np.roll(w, 1, axis=0))),
    ("spatial", "0", "padding along the other axis", attribute("0.first", "pads", [0, 1, 0, 1])),
    ("spatial", "1", "the stride in the wrong stage", attribute("1.first", "strides", [2, 2])),
    ("spatial", "0", "the bias dropped", drop_bias("0.second")),
    ("tucker2", "0", "the first stage off", weight("0.first", one_off)),
    ("tucker2", "1", "a tap of the core off", weight("1.core", one_off)),
    ("tucker2", "3", "the last stage off", weight("3.last", one_off)),
    ("tucker2", "1", "channels behind the core permuted", weight("1.core", lambda w: w[::-1])),
    ("tucker2", "3", "the core of a transposed one flipped", weight("3.core", lambda w: w[..., ::-1, :])),
    ("tucker2", "0", "the first stage's columns permuted", weight("0.first", lambda w: np.roll(w, 1, axis=1))),
    ("cp", "0", "the first stage off", weight("0.first", one_off)),
    ("cp", "1", "a tap of the core off", weight("1.core", one_off)),
    ("cp", "3", "the last stage off", weight("3.last", one_off)),
    ("cp", "1", "kernels of two channels exchanged", weight("1.core", lambda w: np.roll(w, 1, axis=0))),
    ("cp", "3", "the core of a transposed one flipped", weight("3.core", lambda w: w[..., ::-1, :])),
    ("cp", "1", "the stride in the wrong stage", attribute("1.first", "strides", [2, 2])),
    ("cp", "0", "the bias dropped", drop_bias("0.last")),
]


@pytest.mark.parametrize(("form", "layer", "what", "edit"), FAULTS, ids=[f"{f}: {w}" for f, _, w, _ in FAULTS])
def test_a_fault_in_a_stage_is_found_and_named(
    form: str,
    layer: str,
    what: str,
    edit: Edit,
    subjects: dict[str, Subject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del what
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    subject = subjects[form]
    assert subject.file is not None
    faulty = replace(subject, file=planted(subject.file, edit, tmp_path / "faulty.onnx"))
    found = verify_subject(faulty, Check())
    assert found.verdict is Status.FAIL
    failed = {edge.edge: edge.first_divergence for edge in found.edges if edge.status is Status.FAIL}
    assert failed.keys() == {"weights", "export", "optimize"}
    assert set(failed.values()) == {layer}, failed
