"""PNG files decode to the pixels that they were made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from read_png import chunks, read_png

from spdexport.atlases.png import encode_colours, encode_indexed, rounded


@given(
    colours=st.integers(1, 256), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99),
    has_hole=st.booleans(),
)  # fmt: skip
def test_indexed_images_come_back(colours, height, width, seed, has_hole):
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (colours, 3)).astype(np.uint8)
    indices = random.integers(0, colours, (height, width)).astype(np.uint8)
    hole = colours - 1 if has_hole else None
    found = read_png(encode_indexed(indices, palette, transparent=hole))
    np.testing.assert_array_equal(found[..., :3], palette[indices])
    np.testing.assert_array_equal(found[..., 3] == 0, indices == hole if has_hole else np.zeros_like(indices, bool))


@pytest.mark.parametrize("colours", [2, 16, 17, 256, 257, 1000])
def test_images_of_few_and_of_many_colours_come_back_bit_for_bit(colours):
    random = np.random.default_rng(colours)
    palette = np.unique(random.integers(0, 256, (2 * colours, 3)), axis=0)[:colours].astype(np.uint8)
    pixels = palette[random.permutation(np.resize(np.arange(colours), 40 * 30)).reshape(40, 30)]
    content = encode_colours(pixels)
    np.testing.assert_array_equal(read_png(content)[..., :3], pixels)
    # A palette has one byte for a pixel, or less.
    assert (chunks(content)[0][1][9] == 3) == (colours <= 256)


def test_few_colours_stay_as_they_are_and_many_become_fewer():
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    np.testing.assert_array_equal(rounded(grey), grey)
    many = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    found = rounded(many)
    assert len(np.unique(found)) == 16
    assert np.abs(found.astype(int) - many).max() <= 9  # half a step of 4 bits
