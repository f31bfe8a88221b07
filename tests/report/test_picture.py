import itertools
import math

import pytest
from results import check

from spdexport.report.picture import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, draw, shortened
from spdexport.verification.result import Status


def heights(*ratios):
    picture = draw([check(f"l{i}", weights_ratio=None, output_ratio=r) for i, r in enumerate(ratios)])
    return picture, [point.y for point in picture.points]


def test_the_scale_is_logarithmic_and_the_limit_is_at_eight():
    picture, (tenth, one, ten) = heights(0.1, 1.0, 10.0)
    assert tenth - one == pytest.approx(one - ten, abs=0.2)
    assert ten < picture.limit < one
    assert one - picture.limit == pytest.approx((one - ten) * math.log10(8), abs=0.2)
    assert [p.failed for p in picture.points] == [False, False, True]


@pytest.mark.parametrize("number", [0.0, 1e-300, 1e300, math.inf])
def test_everything_is_inside(number):
    _, (y, _) = heights(number, 1.0)
    assert TOP <= y <= HEIGHT - BOTTOM


def test_infinite_is_marked_as_beyond():
    picture, _ = heights(math.inf, 1e9)
    assert [p.beyond for p in picture.points] == [True, False]


def test_layers_go_to_the_right():
    picture, _ = heights(*[1.0] * 200)
    places = [p.x for p in picture.points]
    assert places == sorted(set(places))
    assert places[0] > LEFT
    assert places[-1] < WIDTH


def test_both_ratios_are_drawn_where_they_are_known():
    picture = draw([check("a"), check("b", output_ratio=None)])
    assert [(p.kind, p.title) for p in picture.points] == [
        ("weights", "a: weights 0.25"), ("output", "a: output 0.5"), ("weights", "b: weights 0.25"),
    ]  # fmt: skip


@pytest.mark.parametrize("layers", [[], [check(weights_ratio=None, output_ratio=None)]])
def test_nothing_known_is_no_picture(layers):
    assert draw(layers) is None


def test_names_of_failing_layers_do_not_cover_each_other():
    layers = [check(f"stage.{i}.convolution", Status.FAIL, output_ratio=100.0) for i in range(100)]
    picture = draw(layers)
    assert picture.names[0].text == "stage.0.convolution"
    assert len(picture.names) > 6
    for y in {label.y for label in picture.names}:
        row = sorted(label.x for label in picture.names if label.y == y)
        assert all(b - a > 7 * len("stage.0.convolution") for a, b in itertools.pairwise(row))


def test_few_layers_are_named_below_and_many_are_numbered():
    assert [label.text for label in draw([check("conv1"), check("fc")]).layers] == ["conv1", "fc"]
    numbers = [label.text for label in draw([check(f"a.long.name.{i}") for i in range(200)]).layers]
    assert numbers[0] == "1"
    assert len(numbers) <= 12


def test_long_names_keep_both_ends():
    name = "encoder.stages.0.layers.1.layer.2.convolution"
    assert len(shortened(name)) < len(name)
    assert shortened(name).startswith("encoder.stages")
    assert shortened(name).endswith("2.convolution")
    assert shortened("conv1") == "conv1"
