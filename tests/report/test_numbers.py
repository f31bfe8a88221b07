import math

import pytest

from spdexport.names import count, some
from spdexport.report.numbers import below, ratio, short, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (640, "640"), (999, "999"), (1000, "1 k"), (36_864, "36.9 k"), (99_949, "99.9 k"), (99_960, "100 k"),
        (294_912, "295 k"), (999_499, "999 k"), (999_500, "1 M"), (4_089_184_256, "4.09 G"), (4_100_000_000, "4.1 G"),
        (-1500, "-1.5 k"), (math.inf, "inf"), (5e18, "5000 P"),
    ],
)  # fmt: skip
def test_short(number, text):
    assert short(number) == text


def test_size():
    assert [size(640), size(208_123), size(97_800_000)] == ["640 B", "208 kB", "97.8 MB"]


def test_ratio():
    assert [ratio(0.16410), ratio(1.2e-9), ratio(None), ratio(math.inf)] == ["0.164", "1.2e-09", "-", "inf"]


def test_below_is_rounded_down():
    assert [below(5.76), below(8.0), below(math.inf)] == ["5", "8", "-"]


def test_count():
    assert [count(1, "layer"), count(0, "layer")] == ["1 layer", "0 layers"]


def test_some_never_hides_a_single_name():
    assert some(["a", "b", "c"], 2) == "a, b, c"
    assert some(["a", "b", "c", "d"], 2) == "a, b and 2 more"
