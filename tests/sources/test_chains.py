"""Files of chains: what is written is read again, and everything else is refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from cli_command import spdexport as command

import spdexport
from spdexport import ComponentsError
from spdexport.conv import ConvSite, ConvSpec
from spdexport.forms import FAMILIES, Form, FormKind, fold_form
from spdexport.forms.families import rounded
from spdexport.sources.chains import METADATA, write_chains
from spdexport.sources.match import match_chains
from spdexport.sources.spd import load_components

if TYPE_CHECKING:
    from pathlib import Path

CONV = ConvSpec(in_channels=6, out_channels=8, kernel=(3, 5), stride=(1, 2), padding=((1, 1), (2, 2)), dilation=(1, 1))
UP = ConvSpec(
    in_channels=6, out_channels=8, kernel=(4, 4), stride=(2, 2), padding=((1, 1),) * 2, dilation=(1, 1), groups=2,
    transposed=True,
)  # fmt: skip
FLAT = ConvSpec(in_channels=6, out_channels=8)


def a_site(spec: ConvSpec = CONV, name: str = "conv", *, bias: bool = True, dtype: Any = np.float32) -> ConvSite:
    rng = np.random.default_rng(0)
    weight, added = (rng.standard_normal(shape).astype(dtype) for shape in (spec.weight_shape, spec.out_channels))
    return ConvSite(name=name, spec=spec, weight=weight, bias=added if bias else None, node=name)


def a_form(site: ConvSite, kind: FormKind, rank: int, bias: Any = None) -> Form:
    found = FAMILIES[kind].decompose(site.weight, site.spec, site.weight.dtype)
    form = FAMILIES[kind].form(site.spec, found.weights(found.at(rank)), site.bias if bias is None else bias)
    return rounded(form, site.weight.dtype)


def matched(path: Path, *sites: ConvSite, held: Any = lambda _: None) -> dict[str, Form]:
    return match_chains(load_components(path), sites, (), excluded=lambda _: False, held=held)


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (CONV, FormKind.SPATIAL),
        (CONV, FormKind.TUCKER),
        (CONV, FormKind.RECOMPRESSED),
        (UP, FormKind.SPATIAL),
        (UP, FormKind.TUCKER),
        (FLAT, FormKind.RECOMPRESSED),
    ],
    ids=lambda x: x.describe() if isinstance(x, ConvSpec) else x,
)
def test_what_is_written_is_read(spec: ConvSpec, kind: FormKind, with_metadata: bool, tmp_path: Path) -> None:
    """In the layout of PyTorch, with the kind told, or told from the shapes as of a state dict."""
    site = a_site(spec)
    form = a_form(site, kind, 2, np.ones(8, np.float32))
    file = tmp_path / "f.safetensors"
    write_chains(file, {"conv": form})
    if not with_metadata:
        tensors = safetensors.torch.load_file(file)
        file = tmp_path / "f.pt"
        torch.save(tensors, file)
    found = matched(file, site)["conv"]
    assert found.name == kind
    for one, other in zip(found.stages, form.stages, strict=True):
        assert one.spec == other.spec
        np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(found.stages[-1].bias, np.ones(8))


def test_the_layout_is_that_of_torch(tmp_path: Path) -> None:
    site = a_site(UP)
    write_chains(tmp_path / "f.safetensors", {"conv": a_form(site, FormKind.SPATIAL, 2)})
    tensors = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "conv.stages.0.weight": (6, 2, 4, 1),
        "conv.stages.1.weight": (4, 4, 1, 4),
        "conv.bias": (8,),
    }
    down, across = (
        torch.nn.functional.conv_transpose2d(x, w, stride=s, padding=p, groups=2)
        for x, w, s, p in ((torch.ones(1, 6, 3, 3), tensors["conv.stages.0.weight"], (2, 1), (1, 0)),
                           (torch.ones(1, 4, 3, 3), tensors["conv.stages.1.weight"], (1, 2), (0, 1)))
    )  # fmt: skip
    assert (down.shape, across.shape) == ((1, 4, 6, 3), (1, 8, 3, 6))


def test_the_same_bias_is_the_layers_own(tmp_path: Path) -> None:
    site = a_site()
    write_chains(tmp_path / "f.safetensors", {"conv": a_form(site, FormKind.SPATIAL, 2)})
    assert matched(tmp_path / "f.safetensors", site)["conv"].stages[-1].bias is site.bias
    bare = a_site(bias=False)
    write_chains(tmp_path / "g.safetensors", {"conv": a_form(bare, FormKind.SPATIAL, 2)})
    assert matched(tmp_path / "g.safetensors", site)["conv"].stages[-1].bias is site.bias
    assert matched(tmp_path / "f.safetensors", bare)["conv"].stages[-1].bias is not None


FIRST, SECOND = torch.randn(2, 6, 3, 1), torch.randn(8, 2, 1, 5)
GOOD = {"conv.stages.0.weight": FIRST, "conv.stages.1.weight": SECOND}


@pytest.mark.parametrize(
    ("tensors", "kinds", "message"),
    [
        ({"conv.stages.1.weight": SECOND}, {}, "conv has 1 stage, and stage 0 is missing."),
        ({"conv.stages.0.weight": FIRST}, {}, "conv has 1 stage, and stage 1 is missing."),
        ({**GOOD, "conv.stages.3.weight": SECOND}, {}, "conv has 3 stages, and stage 2 is missing."),
        (GOOD, {"conv": "cubic"}, "The form of conv is 'cubic', which is not known."),
        (GOOD, {"conv": 3}, "The form of conv is 3, which is not known."),
        (GOOD, {"conv": "spatial", "head": "spatial"}, "The metadata tell the form of head, of which the file has no"),
        (GOOD, {"conv": "tucker2"}, "Stages of 2x6x3x1, 8x2x1x5 are no tucker2 of conv (conv2d 6>8 3x5"),
        ({**GOOD, "conv.stages.1.weight": SECOND[:, :1]}, {}, "Stages of 2x6x3x1, 8x1x1x5 are no form of"),
        ({**GOOD, "conv.stages.1.weight": SECOND[0]}, {}, "Stages of 2x6x3x1, 2x1x5 are no form of"),
        ({**GOOD, "conv.stages.0.weight": FIRST[:, :5]}, {"conv": "spatial"}, "are no spatial of conv"),
        ({**GOOD, "conv.stages.0.weight": FIRST * torch.nan}, {}, "holds NaN or infinity (36 values)"),
        ({**GOOD, "conv.stages.0.weight": FIRST.long()}, {}, "is of torch.int64, not of a float type"),
        ({**GOOD, "conv.stages.0.weight": FIRST[:0]}, {}, "holds nothing"),
        ({**GOOD, "conv.bias": torch.zeros(7)}, {}, "The bias of conv has shape 7, and the layer gives 8 channels."),
        ({**GOOD, "conv.V": FIRST}, {}, "conv has V and U beside numbered stages."),
        ({f"konv.{k[5:]}": v for k, v in GOOD.items()}, {}, "The file has components for konv, and the model has no"),
        ({**GOOD, "conv.mask": torch.ones(2)}, {}, "The file holds conv.mask, which is no stage of a form"),
        ({f"head.{k[5:]}": v for k, v in GOOD.items()}, {"head": "spatial"}, "head (linear 6>8) cannot take the"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(
    tensors: dict[str, torch.Tensor], kinds: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.safetensors"
    safetensors.torch.save_file(
        {name: t.clone() for name, t in tensors.items()}, path, metadata={METADATA: json.dumps(kinds)}
    )
    with pytest.raises(ComponentsError) as caught:
        matched(path, a_site(), a_site(FLAT, "head"))
    assert message in caught.value.what
    assert str(path) in caught.value.where
    assert caught.value.hint.endswith(".")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000], ids=["broken", "a list", "deep"])
def test_metadata_that_are_no_names(text: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(GOOD, tmp_path / "f.safetensors", metadata={METADATA: text})
    with pytest.raises(ComponentsError, match=r"metadata spdexport\.forms are no"):
        load_components(tmp_path / "f.safetensors")


def test_values_beyond_the_dtype(tmp_path: Path) -> None:
    safetensors.torch.save_file({**GOOD, "conv.bias": torch.full((8,), 1e6)}, tmp_path / "f.safetensors")
    with pytest.raises(ComponentsError, match="beyond the range of float16"):
        matched(tmp_path / "f.safetensors", a_site(dtype=np.float16))


def test_a_matrix_product_has_no_bias_to_change(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write_chains(path, {"head": a_form(a_site(FLAT, "head"), FormKind.RECOMPRESSED, 2)})
    site = replace(a_site(FLAT, "head", bias=False), is_product=True)
    with pytest.raises(ComponentsError, match="head is a matrix product, whose bias is added by another operator"):
        matched(path, site)


def test_what_the_model_holds_already_may_stand_in_the_file(tmp_path: Path) -> None:
    torch.save({**GOOD, "norm.weight": torch.ones(3), "head.weight": torch.ones(8, 6)}, tmp_path / "f.pt")
    own = {"norm.weight": np.ones(3, np.float32)}
    sites = a_site(), a_site(FLAT, "head")
    found = matched(tmp_path / "f.pt", *sites, held=own.get)
    assert {name: form.name for name, form in found.items()} == {"conv": "spatial", "head": "dense"}
    assert (np.asarray(fold_form(found["head"]).weight) == 1).all()
    own["norm.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ComponentsError, match=r"other numbers in norm\.weight than the model"):
        matched(tmp_path / "f.pt", *sites, held=own.get)


def test_refusals_are_three_lines_on_the_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, source = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3)), tmp_path / "dense.onnx"
    spdexport.convert(model.eval(), source, inputs=torch.randn(2, 6, 5, 5), form="dense", verify=False)
    safetensors.torch.save_file({"0.stages.1.weight": SECOND}, tmp_path / "f.safetensors")
    told = command("convert", source, "--components", tmp_path / "f.safetensors", "-o", tmp_path / "o.onnx")
    assert told.exit_code == 4, told.output
    assert told.output.splitlines() == [
        "error: 0 has 1 stage, and stage 0 is missing.",
        f"  where: {tmp_path / 'f.safetensors'}, layer 0",
        "  to do: Write 0.stages.0.weight too, or leave the layer out.",
    ]
