"""Published blocks that are re-parameterized, built from their papers' description, become plain convolutions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fold_architectures import ARCHITECTURES, reparameterized
from torch import nn

from spdexport.folding import fold
from spdexport.model_files import save_program
from spdexport.rewrite.torch_fold import fold_program
from spdexport.rewrite.torch_graph import list_sites
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

    from fold_architectures import Architecture


def export(architecture: Architecture, path: Path, *, published: bool) -> None:
    """Write the file of an architecture, its norms still in a program."""
    module, x = architecture.make(published=published)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        if path.suffix == ".pt2":
            save_program(program, path)
        else:
            torch.onnx.export(program, dynamo=True, verbose=False).save(path)


def operators(path: Path) -> list[str]:
    """The operators of a file, by what ONNX calls them."""
    if path.suffix == ".onnx":
        return [node.op_type for node in ir.load(path).graph]
    names = {"conv2d": "Conv", "add": "Add", "batch_norm": "BatchNormalization", "avg_pool2d": "AveragePool"}
    calls = (n for n in torch.export.load(path).graph.nodes if n.op == "call_function")
    return [names.get(word := str(node.target).split(".")[1], word) for node in calls]


def check(name: str, folder: Path, ending: str, *, published: bool) -> None:
    architecture = ARCHITECTURES[name]
    export(architecture, folder / f"in{ending}", published=published)
    result = fold(folder / f"in{ending}", folder / f"out{ending}")
    assert result.verdict is Status.PASS
    assert result.declined == ()
    found = operators(folder / f"out{ending}")
    assert found.count("Conv") == architecture.convolutions[published]
    assert found.count("Add") == architecture.sums[published]
    assert not {"BatchNormalization", "AveragePool", "Pad", "Sub", "Mul", "mul", "pad"} & set(found)
    assert len(operators(folder / f"in{ending}")) > len(found)
    again = fold(folder / f"out{ending}", folder / f"again{ending}", verify=False)
    assert again.folded == ()
    cheaper = fold(folder / f"in{ending}", folder / f"cheaper{ending}", verify=False, if_cheaper=True)
    assert all(chain.macs_after <= chain.macs_before for chain in cheaper.folded)
    assert {chain.nodes for chain in cheaper.folded} <= {chain.nodes for chain in result.folded} or cheaper.declined


@pytest.mark.parametrize(("name", "ending"), [("RepVGG-A0", ".onnx"), ("DBB", ".pt2"), ("Conv-LoRA ResNet-18", ".pt2")])
@pytest.mark.sampled(1)
def test_narrow(tmp_path: Path, name: str, ending: str) -> None:
    check(name, tmp_path, ending, published=False)


@pytest.mark.long
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each(tmp_path: Path, name: str, ending: str, published: bool) -> None:
    check(name, tmp_path, ending, published=published)


@pytest.mark.parametrize("name", ["RepVGG-A0", "MobileOne-S0", "ACNet", "RepLKNet"])
def test_the_folded_weights_are_those_of_the_papers_formulas(name: str) -> None:
    module, x = ARCHITECTURES[name].make()
    theirs = reparameterized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,))
    ours = fold_program(program).program
    right = [layer for layer in theirs.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None]
    sites = {tuple(site.weight.shape): [] for site in list_sites(ours)[0]}
    for site in list_sites(ours)[0]:
        sites[tuple(site.weight.shape)].append(site)
    assert right
    for layer in right:
        found = sites[tuple(layer.weight.shape)]
        nearest = min(float(np.abs(site.weight - layer.weight.detach().numpy()).max()) for site in found)
        assert nearest <= 1e-6
    assert (ours.module()(x) - theirs(x)).abs().max() <= 1e-5
