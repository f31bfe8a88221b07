"""Pictures of arrays, decoded and compared with the arrays."""

import numpy as np
import pytest
from read_png import read_png

from spdexport.atlases.pictures import (
    LARGEST,
    as_pixels,
    places_picture,
    smaller,
    thumbnail,
    told_of_weights,
    weights_picture,
)

WHITE = [247, 247, 247, 255]
RANDOM = np.random.default_rng(0)


def levels(picture):
    """Of the red and blue of a picture of V: from -7 to 7; nan where nothing is drawn."""
    pixels = read_png(picture.png).astype(float)
    assert pixels.shape[:2] == (picture.height, picture.width)
    found = np.empty(pixels.shape[:2])
    for place in np.ndindex(*found.shape):
        red, _, blue, opaque = pixels[place]
        end, sign = ((178, 24, 43), 1) if red >= blue else ((33, 102, 172), -1)
        share = (247 - pixels[place][1]) / (247 - end[1])
        found[place] = sign * round(7 * share) if opaque else np.nan
    return found


def test_one_patch_is_drawn_value_for_value():
    values = RANDOM.normal(size=(1, 3, 5))
    found = levels(weights_picture(values))
    np.testing.assert_array_equal(found, np.rint(values[0] / np.abs(values).max() * 7))


def test_patches_of_channels_stand_side_by_side_with_a_line_between_them():
    values = RANDOM.normal(size=(6, 2, 2))
    found = levels(weights_picture(values))
    right = np.rint(values / np.abs(values).max() * 7)
    assert found.shape == (5, 8)  # two rows of three
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, [2, 5]]).all()
    for i in range(6):
        top, left = i // 3 * 3, i % 3 * 3
        np.testing.assert_array_equal(found[top : top + 2, left : left + 2], right[i])


def test_of_many_channels_the_strongest_are_shown_in_their_order():
    values = RANDOM.normal(size=(100, 3, 3)) * 0.01
    strong = sorted(RANDOM.choice(100, 64, replace=False))
    values[strong] *= 100
    found = levels(weights_picture(values))
    assert found.shape == (31, 31)
    np.testing.assert_array_equal(found[28:31, 28:31], np.rint(values[strong[-1]] / np.abs(values).max() * 7))
    assert "the strongest 64 of 100 channels" in told_of_weights((100, 3, 3), flattened=False)


def test_three_channels_are_colours_and_grey_is_zero():
    values = np.zeros((3, 2, 2))
    values[0, 0, 0], values[2, 1, 1] = 2.0, -2.0
    found = read_png(weights_picture(values).png)
    assert found[0, 0, :3].tolist() == [255, 128, 128]
    assert found[1, 1, :3].tolist() == [128, 128, 0]
    assert found[0, 1, :3].tolist() == [128, 128, 128]
    assert "in colour" in told_of_weights((3, 2, 2), flattened=False)


@pytest.mark.parametrize("number", [1, 5, 64, 512, 3 * LARGEST])
def test_a_linear_layers_weights_are_rows(number):
    values = RANDOM.normal(size=number)
    found = levels(weights_picture(values))
    kept = values
    if number > LARGEST:  # of three, the greatest
        groups = values.reshape(-1, 3)
        kept = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)[:, 0]
    right = np.rint(kept / np.abs(kept).max() * 7)
    np.testing.assert_array_equal(found.reshape(-1)[: right.size], right)
    assert not found.reshape(-1)[right.size :].any()


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 3, 3), (8, 3, 3), (7,), (4, 5), (2, 3, 3, 3)])
def test_weights_of_zeros_are_drawn_without_a_warning(shape):
    pixels = read_png(weights_picture(np.zeros(shape)).png)
    drawn = pixels[pixels[..., 3] > 0]
    assert (drawn == WHITE).all() or (drawn[:, :3] == 128).all()
    assert told_of_weights(shape, flattened=False)


def test_a_kernel_of_three_axes_is_drawn_slice_by_slice():
    values = RANDOM.normal(size=(1, 2, 3, 3))
    found = levels(weights_picture(values))
    np.testing.assert_array_equal(found[:, 4:], np.rint(values[0, 1] / np.abs(values).max() * 7))


def test_places_are_brighter_the_more_samples_fire():
    shares = np.array([[0.0, 0.25], [0.5, 0.125]])
    pixels = read_png(places_picture(shares).png)[..., :3].sum(axis=2)
    assert pixels[1, 0] > pixels[0, 1] > pixels[1, 1] > pixels[0, 0]
    assert read_png(places_picture(shares).png)[1, 0, :3].tolist() == [253, 231, 37]
    assert places_picture(np.zeros((4, 4))).width == 4
    assert places_picture(RANDOM.random((112, 100))).height == 28  # blocks of 4
    assert (places_picture(RANDOM.random(9)).height, places_picture(RANDOM.random(9)).width) == (1, 9)


def test_samples_are_images_between_the_least_and_the_greatest_of_the_data():
    sample = np.array([[[-1.0, 0.0], [1.0, 3.0]]])
    pixels = as_pixels(sample, np.array([-1.0]), np.array([3.0]))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 64], [128, 255]])
    colours = as_pixels(RANDOM.random((3, 4, 5)), np.zeros(3), np.ones(3))
    assert colours.shape == (4, 5, 3)
    assert as_pixels(RANDOM.random((2, 4, 5)), np.zeros(2), np.zeros(2)).shape == (4, 5, 1)


def test_a_smaller_image_has_the_means_of_blocks():
    pixels = RANDOM.integers(0, 256, (10, 7, 3)).astype(np.uint8)
    found = smaller(pixels, 4)
    assert found.shape == (4, 3, 3)
    np.testing.assert_array_equal(found[0, 0], np.rint(pixels[:3, :3].mean(axis=(0, 1))))
    np.testing.assert_array_equal(found[3, 2], np.rint(pixels[9:, 6:].mean(axis=(0, 1))))
    assert smaller(pixels, 64) is not pixels
    np.testing.assert_array_equal(smaller(pixels, 64), pixels)


def test_a_thumbnail_decodes_to_the_small_image():
    grey = RANDOM.integers(0, 256, (16, 16, 1)).astype(np.uint8)
    found = read_png(thumbnail(grey, 16).png)
    np.testing.assert_array_equal(found[..., :3], np.repeat(grey, 3, axis=2))
