from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import CalledTwice, Functional, SmallNet
from torch import nn

import spdexport
from spdexport.conv import ConvSite, ConvSpec, Skipped, stored_weight
from spdexport.rewrite.torch_fold import fold_program
from spdexport.rewrite.torch_graph import list_sites
from spdexport.rewrite.torch_place import place_forms


def sites_of(module: nn.Module, *args: torch.Tensor) -> tuple[tuple[ConvSite, ...], tuple[Skipped, ...]]:
    return list_sites(torch.export.export(module.eval(), args))


def test_names_and_geometries() -> None:
    sites, skipped = sites_of(SmallNet(), torch.randn(2, 3, 16, 16))
    assert [(s.name, s.spec.describe(), s.positions) for s in sites] == [
        ("stem.conv", "3>8 3x3 p1", 256),
        ("strided.conv", "8>8 3x5 s2x1 p1x2", 128),
        ("dilated.conv", "8>8 3x3 p2 d2", 128),
        ("grouped.conv", "8>8 3x3 p1 g2", 128),
        ("even.conv", "8>8 2x2 p0:1", 128),
        ("depthwise.conv", "8>8 3x3 p1 g8", 128),
        ("head", "8>5", 1),
    ]
    assert skipped == ()


def test_weights_are_views_of_the_modules_own() -> None:
    module = CalledTwice().eval()
    sites, _ = sites_of(module, torch.randn(2, 4, 6, 6))
    assert [s.name for s in sites] == ["conv", "conv#2"]
    assert all(s.weight.ctypes.data == module.conv.weight.data_ptr() for s in sites)


def test_functional_convolutions_are_called_after_their_weights() -> None:
    sites, _ = sites_of(Functional(), torch.randn(2, 3, 8, 8))
    assert [s.name for s in sites] == ["first", "second"]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_to_three_spatial_axes_and_the_lowered_operator(axes: int) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](4, 6, 3, stride=2, padding=1, groups=2)
    program = torch.export.export(layer.eval(), (torch.randn(1, 4, *(8,) * axes),))
    spec = ConvSpec(
        in_channels=4,
        out_channels=6,
        kernel=(3,) * axes,
        stride=(2,) * axes,
        padding=((1, 1),) * axes,
        dilation=(1,) * axes,
        groups=2,
    )
    for each in (program, program.run_decompositions()):
        (site,), _ = list_sites(each)
        assert site.spec == spec
        assert site.spec.kind == f"conv{axes}d"
        assert site.positions == 4**axes


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed_convolutions_have_the_weight_in_the_layout_of_the_others(axes: int) -> None:
    cls = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    layer = cls(4, 6, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2)
    program = torch.export.export(layer.eval(), (torch.randn(1, 4, *(5,) * axes),))
    for each in (program, program.run_decompositions()):
        (site,), _ = list_sites(each)
        assert site.spec == ConvSpec(
            in_channels=4, out_channels=6, kernel=(3,) * axes, stride=(3,) * axes, padding=((1, 1),) * axes,
            dilation=(2,) * axes, groups=2, transposed=True, output_padding=(2,) * axes,
        )  # fmt: skip
        assert site.spec.kind == f"conv_transpose{axes}d"
        assert site.weight.shape == site.spec.weight_shape
        assert (site.positions, site.input_positions, site.input_size) == (17**axes, 5**axes, (5,) * axes)
        assert site.applications == 5**axes
        weight = layer.weight.detach().numpy()
        # The second group's first output reads its second input by this entry.
        assert (site.weight[3, 1] == weight[3, 0]).all()
        assert (stored_weight(site.weight, site.spec) == weight).all()


def test_a_lowered_linear_layer_and_a_product_with_a_stored_transpose() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x, self.weight)

    linear = nn.Linear(4, 6)
    lowered = torch.export.export(linear.eval(), (torch.randn(3, 4),)).run_decompositions()
    (site,), _ = list_sites(lowered)
    assert (site.weight == linear.weight.detach().numpy()).all()
    module = Transposed()
    (site,), _ = sites_of(module, torch.randn(3, 4))
    assert site.is_product
    assert (site.weight == module.weight.detach().numpy().T).all()
    assert (site.spec.in_channels, site.spec.out_channels) == (4, 6)


def test_computed_weights_are_evaluated() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    program = torch.export.export(nn.Sequential(layer).eval(), (torch.randn(1, 3, 8, 8),))
    (site,), _ = list_sites(program)
    assert site.name == "0"
    torch.testing.assert_close(torch.from_numpy(site.weight), layer.weight.detach())


def test_a_tied_weight_is_called_after_the_module_that_uses_it() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    module[1].weight = module[0].weight
    sites, _ = sites_of(module, torch.randn(1, 4, 5, 5))
    assert [s.name for s in sites] == ["0", "1"]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padding_mode_is_known(mode: str) -> None:
    (site,), _ = sites_of(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), torch.randn(1, 3, 8, 8))
    assert site.padding_mode == mode
    assert site.spec.padding == ((0, 0), (0, 0))


def test_padding_of_another_module_is_not_the_layers_own() -> None:
    (site,), _ = sites_of(nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))
    assert site.padding_mode == "zeros"


class _Dynamic(nn.Module):
    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(x, w) if self.transposed else nn.functional.conv2d(x, w)


class _Geometry(nn.Module):
    """The padding is a number that the graph reads from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(x, self.weight, stride=x.shape[2])


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight)


class _Integer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(4, 3, 1, 1, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight)


class _DynamicBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, x.mean((0, 2, 3)).repeat(2)[:4])


class _Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.add_(1.0)
        return nn.functional.conv2d(x, self.weight)


class _Writing(nn.Module):
    """Writes to a view of its weight or its bias, in front of the convolution or behind it."""

    def __init__(self, what: str, when: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(4), requires_grad=False)
        self.what, self.when = what, when

    def write(self) -> None:
        match self.what:
            case "weight":
                self.weight[0].zero_()
            case "part":
                self.weight.split(2)[1].add_(1.0)
            case "bias":
                self.bias.view(2, 2)[0].mul_(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.when == "before":
            self.write()
        y = nn.functional.conv2d(x, self.weight, self.bias)
        if self.when == "after":
            self.write()
        return y


@pytest.mark.parametrize("what", ["weight", "part", "bias"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.sampled(3)
def test_a_layer_is_left_alone_where_the_model_writes_to_its_memory(what: str, when: str, tmp_path: Path) -> None:
    """Both readers of a graph know what is constant from one place: a layer of one is no fault of the other."""
    module, x = _Writing(what, when), torch.randn(2, 3, 5, 5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    conversion = spdexport.convert(nn.Sequential(module, nn.Conv2d(4, 4, 3)), tmp_path / "m.onnx", inputs=x)
    assert conversion.verdict is spdexport.Status.PASS
    assert [layer.name for layer in conversion.plan.layers] == ["1"]
    (skipped,) = conversion.plan.skipped
    assert "or the model changes it" in skipped.reason
    # The model is called many times while it is verified, and keeps its numbers.
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    program = torch.export.export(module, (x,))
    assert fold_program(place_forms(program, [])).folded == ()


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight, alpha=2)


class _WideBias(_Scaled):
    """A bias of the shape (1, out), which addmm takes too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias[None], x, self.weight)


@pytest.mark.parametrize(
    ("module", "inputs", "kind", "reason"),
    [
        (
            _Dynamic(transposed=True),
            (torch.randn(1, 3, 5, 5), torch.randn(3, 4, 1, 1)),
            "conv_transpose2d",
            "its weight",
        ),
        (nn.ConvTranspose1d(3, 4, 3), (torch.randn(3, 5),), "conv_transpose1d", "its input has no batch axis"),
        (_Geometry(), (torch.randn(1, 3, 5, 5),), "conv_transpose2d", "its geometry depends on the input"),
        (_Complex(), (torch.randn(1, 3, 5, 5, dtype=torch.complex64),), "conv2d", "its weight is torch.complex64"),
        (_Integer(), (torch.ones(1, 3, 5, 5, dtype=torch.int32),), "conv2d", "its weight is torch.int32"),
        (nn.Embedding(7, 4), (torch.tensor([1, 2]),), "embedding", "a table"),
        (_Dynamic(), (torch.randn(1, 3, 5, 5), torch.randn(4, 3, 1, 1)), "conv2d", "its weight depends on the input"),
        (_DynamicBias(), (torch.randn(1, 3, 5, 5),), "conv2d", "its bias depends on the input"),
        (_Changing(), (torch.randn(1, 3, 5, 5),), "conv2d", "or the model changes it"),
        (_Scaled(), (torch.randn(2, 3),), "linear", "its product or its bias is scaled"),
        (_WideBias(), (torch.randn(2, 3),), "linear", "its bias is no vector of its output"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_left_alone_has_its_reason(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], kind: str, reason: str
) -> None:
    dynamic = {2: torch.export.Dim.DYNAMIC} if isinstance(module, _Geometry) else None
    shapes = None if dynamic is None else (dynamic,)
    sites, (skipped,) = list_sites(torch.export.export(module.eval(), inputs, dynamic_shapes=shapes))
    assert sites == ()
    assert skipped.kind == kind
    assert reason in skipped.reason


def test_a_product_of_two_activations_is_no_layer() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mm(x, x.T)

    assert sites_of(Product(), torch.randn(3, 4)) == ((), ())


def test_a_convolution_of_a_single_sample_without_a_batch_axis_is_left_alone() -> None:
    sites, skipped = sites_of(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(3, 8, 8))
    assert sites == ()
    assert [(s.name, s.reason) for s in skipped] == [("0", "its input has no batch axis")]


def test_layers_in_control_flow_are_reported() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen: torch.Tensor = torch.cond(
                x.sum() > 0, lambda y: self.conv(y).sum(), lambda y: -self.conv(y).sum(), (x,)
            )
            return chosen

    sites, skipped = sites_of(Choice(), torch.randn(1, 3, 8, 8))
    assert sites == ()
    reason = "torch's cond runs it; with the ONNX file as the source it is decomposed"
    assert [(s.name, s.kind, s.reason) for s in skipped] == [
        ("conv in true_graph_0", "conv2d", reason),
        ("conv in false_graph_0", "conv2d", reason),
    ]


def test_layers_in_graphs_inside_of_graphs_are_reported_by_their_weights() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rare, self.often = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def step(i: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return i + 1, torch.cond(z.sum() > 0, lambda t: self.rare(t), lambda t: self.often(t), (z,))

            _, result = torch.while_loop(lambda i, _: i < 3, step, (torch.tensor(0), self.first(x)))
            found: torch.Tensor = result
            return found

    sites, skipped = sites_of(Nested(), torch.randn(2, 4))
    assert [site.name for site in sites] == ["first"]
    assert [(s.name, s.kind) for s in skipped] == [
        ("rare in while_loop_body_graph_0/true_graph_0", "linear"),
        ("often in while_loop_body_graph_0/false_graph_0", "linear"),
    ]
