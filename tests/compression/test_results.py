"""What a search finds in planted networks, and faults in the file that it delivers."""

import compressible_nets as nets
import numpy as np
import pytest
import torch
from planting import planted, weight
from test_compress import factory, folder  # noqa: F401 - a fixture

import spdexport


class OneLayer(nets.Planted):
    """The planted net with another weight in the layer ``split``, of 32 to 48 channels."""

    def __init__(self, array):
        super().__init__()
        with torch.no_grad():
            self.split.weight.copy_(torch.tensor(array, dtype=torch.float32))


def of_rank(form, ranks):
    """A weight (48, 32, 3, 3) that a form of these ranks holds exactly, and none of smaller ones."""
    random = np.random.default_rng(sum(ranks))
    draw = random.standard_normal
    if form == "recompressed":
        (c,) = ranks
        array = (draw((48, c)) @ draw((c, 288))).reshape(48, 32, 3, 3)
    elif form == "spatial":
        (c,) = ranks
        array = np.einsum("ria,orb->oiab", draw((c, 32, 3)), draw((48, c, 3)))
    else:
        r, t = ranks
        array = np.einsum("ot,trab,ri->oiab", draw((48, t)), draw((t, r, 3, 3)), draw((r, 32)))
    return array / np.linalg.norm(array) * 9


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        pytest.param("recompressed", (3,), marks=pytest.mark.long),
        ("recompressed", (11,)),
        pytest.param("recompressed", (20,), marks=pytest.mark.long),
        pytest.param("spatial", (3,), marks=pytest.mark.long),
        ("spatial", (13,)),
        pytest.param("spatial", (20,), marks=pytest.mark.long),
        pytest.param("tucker2", (3, 5), marks=pytest.mark.long),
        ("tucker2", (8, 12)),
        pytest.param("tucker2", (12, 20), marks=pytest.mark.long),
    ],
)
@pytest.mark.sampled(1)
def test_exact_low_rank_of_every_form_is_found_and_loses_nothing(tmp_path, form, ranks):
    found = spdexport.compress(
        OneLayer(of_rank(form, ranks)),
        tmp_path / "p.onnx",
        data=nets.images(180),
        max_relative_l2=1e-3,
        lane_width=1,
        verify=False,
    )
    layer = {layer.name: layer for layer in found.search.layers}["split"]
    assert (layer.form, layer.ranks) == (form, ranks)
    assert found.search.test.interval.high < 1e-3


@pytest.mark.long
def test_a_budget_of_divergence_is_kept(folder, tmp_path):  # noqa: F811
    """A third of what one budget's choice loses buys less, and is kept as well."""

    def within(limit):
        found = spdexport.compress(
            None, tmp_path / "k.onnx", factory=factory("Full"), data=folder / "x.npz", max_kl=limit, verify=False
        )
        assert found.search.loss == "KL divergence"
        assert found.search.chosen is not None
        assert 0 < found.search.chosen.loss <= found.search.chosen.bound <= limit
        return found.search.chosen

    wide = within(1e-3)
    narrow = within(wide.bound / 3)
    assert wide.cost < narrow.cost < 1


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """The planted net, compressed, with its module."""
    path = tmp_path_factory.mktemp("delivered") / "small.onnx"
    forms = path.with_name("forms.safetensors")
    spdexport.compress(
        nets.Planted(), path, data=nets.images(180), max_relative_l2=1e-3, lane_width=1, verify=False,
        save_components=forms,
    )  # fmt: skip
    return path, forms


def weights_of(path):
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def one_entry(values):
    values = values.copy()
    values.reshape(-1)[7] += 0.02 * np.abs(values).max()
    return values


def swapped(model):
    """Turns the channels of a stage around, as if another tensor were stored in its place."""
    import onnx

    name = next(t.name for t in model.graph.initializer if t.name.startswith("split.") and len(t.dims) == 4)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[::-1]), name))


def exchanged(model):
    """Lets two nodes read each other's bias."""
    readers = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    size = {t.name: tuple(t.dims) for t in model.graph.initializer}
    first = readers[0]
    second = next(n for n in readers[1:] if size[n.input[2]] == size[first.input[2]])
    first.input[2], second.input[2] = second.input[2], first.input[2]


def shifted(model):
    """Moves the padding of a stage from one side to the other."""
    import onnx

    node = next(
        n for n in model.graph.node if any(a.name == "pads" and list(a.ints) == [1, 0, 1, 0] for a in n.attribute)
    )
    kept = [a for a in node.attribute if a.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [2, 0, 0, 0])])


FAULTS = {
    "a changed weight": weight("split.stages.0.weight", one_entry),
    "a swapped initializer": swapped,
    "exchanged inputs": exchanged,
    "a changed attribute": shifted,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.sampled(2)
def test_faults_in_a_delivered_file_are_caught(delivered, tmp_path, fault):
    path, forms = delivered
    edit = FAULTS[fault]
    if fault == "a changed weight":
        name = next(n for n, a in weights_of(path).items() if n.startswith("split.") and a.ndim == 4)
        edit = weight(name, one_entry)
    file = planted(path, edit, tmp_path / "f.onnx")
    found = spdexport.verify(file, against=nets.Planted(), components=forms)
    assert found.verdict == "fail"
    assert next(edge for edge in found.edges if edge.edge == "weights").status == "fail"
    assert spdexport.verify(file).verdict == "fail"
