"""How generated inputs are drawn: seeded, of several kinds and batch sizes, the most telling first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import Array


class Recipe(NamedTuple):
    """One kind of generated input.

    Attributes:
        name: In words.
        batch: The batch size, where the batch is dynamic.
        draw: Gives float64 values of a shape.
    """

    name: str
    batch: int
    draw: Callable[[tuple[int, ...], np.random.Generator], Array]

    def label(self, *, dynamic: bool) -> str:
        """Return what a case made by this recipe is called."""
        return f"{self.name}, batch {self.batch}" if dynamic else self.name


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return random.standard_normal(shape)


def _uniform(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return random.random(shape)


def _sparse(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    values: Array = random.standard_normal(shape) * (random.random(shape) < 0.1)
    return values


def _large(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return 100 * random.standard_normal(shape)


def _tiny(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return 1e-3 * random.standard_normal(shape)


def _constant(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return np.full(shape, random.standard_normal())


RECIPES: tuple[Recipe, ...] = (
    Recipe("normal", 2, _normal),
    Recipe("uniform", 1, _uniform),
    Recipe("sparse", 3, _sparse),
    Recipe("large", 1, _large),
    Recipe("tiny", 1, _tiny),
    Recipe("constant", 2, _constant),
)


def generators(seed: int) -> list[tuple[Recipe, np.random.Generator]]:
    """Return each recipe with a random generator of its own, so that leaving one out does not change the others."""
    return [(recipe, np.random.default_rng([seed, number])) for number, recipe in enumerate(RECIPES)]


def draw(
    recipe: Recipe,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    random: np.random.Generator,
    *,
    span: tuple[int, int] = (0, 1),
) -> Array:
    """Return values of one input.

    Args:
        recipe: The kind; it matters to floats alone.
        shape: The shape.
        dtype: The input's dtype, ml_dtypes' bfloat16 included.
        random: The generator.
        span: The lowest and highest integer that is known to be allowed: integers are indices more often than numbers.
    """
    if dtype.kind == "b":
        return random.random(shape) < 0.5
    if dtype.kind in "iu":
        return random.integers(span[0], span[1], shape, endpoint=True).astype(dtype)
    if dtype.kind == "c":
        return np.asarray(recipe.draw(shape, random) + 1j * recipe.draw(shape, random), dtype=dtype)
    return np.asarray(recipe.draw(shape, random)).astype(dtype)


def span_of(example: Array) -> tuple[int, int]:
    """Return the lowest and highest integer that an example holds; 0 and 1 for other dtypes and without any."""
    if example.dtype.kind not in "iu" or not example.size:
        return 0, 1
    return int(example.min()), int(example.max())
