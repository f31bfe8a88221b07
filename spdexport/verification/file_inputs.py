"""The inputs that a file is checked on by itself: the user's own, and ones generated from what it declares."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from spdexport.errors import ExampleInputError
from spdexport.files.limits import limit
from spdexport.files.npz import read_npz
from spdexport.files.onnx_sizes import GIB
from spdexport.files.sniff import FileKind, sniff
from spdexport.names import CLASSES, count
from spdexport.ort.installed import require_torch
from spdexport.ranges import SizeRange, ends
from spdexport.verification.ports import FileCase, Port
from spdexport.verification.recipes import Recipe, draw, generators, span_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs
    from spdexport.ranges import Ranges

_NO_LIMITS: Mapping[str, SizeRange] = MappingProxyType({})

SIZES = (32, 64, 224, 512, 2048, 16, 8, 4, 2, 1)
"""Sizes tried for dynamic axes other than the batch, where no example tells one that the model takes."""

FOLLOWS_BATCH = -1
"""The size of an axis that is as long as the batch, whatever that is."""


def given_by_name(ports: Sequence[Port], args: Sequence[Array], kwargs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the user's inputs by the file's names: positional ones in the file's order.

    Raises:
        ExampleInputError: They are too few, too many, or do not fit what the file declares.
    """
    declared = ", ".join(port.describe() for port in ports)
    hint = f"The file takes {declared or 'no inputs'}."
    names = [port.name for port in ports]
    if len(args) > len(ports):
        raise ExampleInputError(
            f"{count(len(args), 'input')} for a file that takes {len(ports)}.", where="--inputs", hint=hint
        )
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    unknown, missing = [n for n in given if n not in names], [n for n in names if n not in given]
    if unknown or missing:
        what = f"{unknown[0]!r} is no input of the file" if unknown else f"the input {missing[0]!r} is not given"
        more = f" {CLASSES}" if unknown else ""
        raise ExampleInputError(f"{what[0].upper()}{what[1:]}.", where="--inputs", hint=hint + more)
    for port in ports:
        array = given[port.name]
        found = Port(name=port.name, dtype=array.dtype, shape=array.shape)
        if port.conflicts(found):
            raise ExampleInputError(f"The inputs have {found.describe()}.", where="--inputs", hint=hint)
    return {name: given[name] for name in names}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenArrays:
    """The user's inputs as arrays, where there is no torch to hold them.

    Attributes:
        args: Positional ones.
        kwargs: Those by name.
        origin: Where they come from.
    """

    args: tuple[Array, ...]
    kwargs: Mapping[str, Array]
    origin: str


def read_arrays(path: Path) -> GivenArrays:
    """Return inputs from a .npz file, by the file's names; one alone is positional, whatever its name.

    Raises:
        ExampleInputError: The file is no .npz file, or holds nothing.
        RuntimeMissingError: It is of another kind, which torch is needed for.
    """
    if sniff(path, error=ExampleInputError) is not FileKind.NPZ:
        require_torch("Only .npz files of inputs are read without it.")
    found = dict(read_npz(path, error=ExampleInputError))
    # What --repro saves beside the inputs.
    found = {name: value for name, value in found.items() if not name.startswith(("output:", "reference:"))}
    if not found:
        raise ExampleInputError("The file holds no arrays.", where=str(path), hint="Save the inputs by name.")
    if len(found) == 1:
        return GivenArrays(args=tuple(found.values()), kwargs={}, origin=str(path))
    return GivenArrays(args=(), kwargs=found, origin=str(path))


def given_tensors(ports: Sequence[Port], inputs: ExampleInputs | GivenArrays) -> dict[str, Array]:
    """Return the same for example inputs as they were loaded.

    Raises:
        ExampleInputError: As ``given_by_name`` does.
    """
    takes_labels = any(port.name == "labels" for port in ports)
    if isinstance(inputs, GivenArrays):
        arrays = {name: array for name, array in inputs.kwargs.items() if takes_labels or name != "labels"}
        if len(arrays) == 1 and not inputs.args and arrays != inputs.kwargs:
            return given_by_name(ports, tuple(arrays.values()), {})
        return given_by_name(ports, inputs.args, arrays)
    if takes_labels and inputs.labels is not None:
        inputs = inputs.with_labels_as_input()
    from spdexport.arrays import to_numpy  # needs torch, as the inputs do
    from spdexport.loading.model import named_tensors

    args = [to_numpy(t) for t in replace(inputs, kwargs={}).tensors()]
    return given_by_name(ports, args, {name: to_numpy(t) for name, t in named_tensors(inputs.kwargs).items()})


def limits_of(ports: Sequence[Port], ranges: Ranges) -> dict[str, SizeRange]:
    """Return the sizes that a file holds for by the names under which those of dynamic axes are kept."""
    return {
        key: held
        for port in ports
        for axis, held in ranges.get(port.name, {}).items()
        if axis < len(port.shape or ()) and (key := _key(port, axis)) is not None
    }


def guesses(
    ports: Sequence[Port], example: Mapping[str, Array] | None, limits: Mapping[str, SizeRange] = _NO_LIMITS
) -> Iterator[tuple[int | None, dict[str, int]]]:
    """Yield sizes for the dynamic axes other than the batch, in the order in which they are to be tried.

    Args:
        ports: The file's inputs.
        example: Inputs whose sizes are known to be right, or None.
        limits: The sizes that the file holds for, by the names of axes.

    Yields:
        The size that was guessed for all of them (None where nothing is guessed), and the size of each by its name.
        Such axes of further inputs, as of the states of a recurrent network, may be ``FOLLOWS_BATCH``, also where the
        example's are just as long as its batch.
    """
    batch = _batch_key(ports)
    keys = [key for port in ports for axis in range(len(port.shape or ())) if (key := _key(port, axis)) is not None]
    known: dict[str, int] = {}
    if example is not None:
        for port in ports:
            sizes = example[port.name].shape
            known |= {key: size for axis, size in enumerate(sizes) if (key := _key(port, axis)) is not None}
    unknown = [key for key in dict.fromkeys(keys) if key != batch and key not in known]
    # States of recurrent networks are as long as the batch, and often have no name for that axis.
    leading = {_key(port, axis) for port in ports[:1] for axis in range(len(port.shape or ()))}
    samples = limits[batch].nearest(3) if batch is not None and batch in limits else 1

    def fits(sizes: Mapping[str, int]) -> bool:
        """Return whether inputs of these sizes are no more than the memory holds, whatever a file says."""
        elements = [samples * math.prod(_sample_shape(port, sizes, batch)) for port in ports]
        return all(8 * number <= limit("value") * GIB for number in elements)

    if not unknown:
        if samples > 1 and not fits(known):
            raise _too_large(limits)
        yield None, known
        if example is not None and batch is not None:
            own = next(example[port.name].shape[0] for port in ports if port.shape)
            alike = [key for key, size in known.items() if size == own and key not in leading]
            if alike:
                yield None, known | dict.fromkeys(alike, FOLLOWS_BATCH)
        return
    tied = dict.fromkeys([key for key in unknown if key not in leading], FOLLOWS_BATCH)
    guessed = [
        (size, known | {key: limits[key].nearest(size) if key in limits else size for key in unknown}) for size in SIZES
    ]
    if batch is not None and tied:
        guessed += [(size, sizes | tied) for size, sizes in (guessed if len(tied) < len(unknown) else guessed[-1:])]
    found = False
    for size, named in guessed:
        # Of inputs with many dynamic axes a size that is usual for two of them is more than the memory holds.
        if fits(named) or (size == 1 and not limits):
            found = True
            yield size, named
    if not found:
        raise _too_large(limits)


def _too_large(limits: Mapping[str, SizeRange]) -> ExampleInputError:
    return ExampleInputError(
        "The sizes that the file says it holds for are more than the limit of values in memory.",
        where=", ".join(f"{key} of {held}" for key, held in limits.items()),
        hint="Give verify --inputs FILE, or raise --limit value.",
    )


def _sample_shape(port: Port, sizes: Mapping[str, int], batch: str | None) -> list[int]:
    """The shape of a single sample of an input."""
    keys = [_key(port, axis) for axis in range(len(port.shape or ()))]
    named = {key: 1 if size == FOLLOWS_BATCH else size for key, size in sizes.items()}
    named |= {"": 1} if batch is None else {"": 1, batch: 1}
    return [d if isinstance(d, int) else named[key or ""] for d, key in zip(port.shape or (), keys, strict=True)]


def file_cases(
    ports: Sequence[Port],
    sizes: Mapping[str, int],
    example: Mapping[str, Array] | None,
    *,
    seed: int,
    limits: Mapping[str, SizeRange] = _NO_LIMITS,
    batch: int | None = None,
) -> Iterator[FileCase]:
    """Generated cases of all recipes.

    Args:
        ports: The file's inputs.
        sizes: Of dynamic axes other than the batch, by name.
        example: Inputs that the model takes; integers are drawn from the range they span, else from 0 and 1.
        seed: Of the random generator.
        limits: The sizes that the file holds for, by the names of axes: the first two cases have those at the ends.
        batch: The only one that the model takes; None for the recipes' own.
    """
    batch_key = _batch_key(ports)
    at_ends = {key: ends(held, sizes[key]) for key, held in limits.items() if key in sizes and key != batch_key}
    for number, (recipe, random) in enumerate(generators(seed)):
        special = {key: pair[number] for key, pair in at_ends.items()} if number < 2 else {}
        if batch is not None:
            recipe = recipe._replace(batch=batch)
        elif batch_key is not None and batch_key in limits:
            recipe = recipe._replace(batch=limits[batch_key].nearest(recipe.batch))
        inputs = generated(ports, {**sizes, **special}, example, recipe, random)
        label = recipe.label(dynamic=batch_key is not None)
        label += "".join(f", {key} {size}" for key, size in special.items() if size != sizes[key])
        yield FileCase(name=label, inputs=inputs, own=False)


def varies_in_batch(ports: Sequence[Port]) -> bool:
    """Return whether the first axis of the first input may have any size."""
    return _batch_key(ports) is not None


def generated(
    ports: Sequence[Port],
    sizes: Mapping[str, int],
    example: Mapping[str, Array] | None,
    recipe: Recipe,
    random: np.random.Generator,
) -> dict[str, Array]:
    """Return inputs of one recipe by name; the other arguments as for ``file_cases``."""
    batch = _batch_key(ports)
    inputs = {}
    following = {key for key, size in sizes.items() if size == FOLLOWS_BATCH} | {batch}
    for port in ports:
        shape = tuple(
            d if isinstance(d, int) else recipe.batch if _key(port, axis) in following else sizes[str(_key(port, axis))]
            for axis, d in enumerate(_known_shape(port, example))
        )
        span = span_of(example[port.name]) if example is not None else (0, 1)
        inputs[port.name] = draw(recipe, shape, port.dtype, random, span=span)
    return inputs


def _known_shape(port: Port, example: Mapping[str, Array] | None) -> tuple[int | str | None, ...]:
    if port.shape is not None:
        return port.shape
    if example is not None:
        return example[port.name].shape
    raise ExampleInputError(
        f"The file does not say the shape of {port.name}.",
        where="the file's inputs",
        hint="Give verify --inputs FILE, or bench --inputs FILE; fold --no-verify needs none.",
    )


def _key(port: Port, axis: int) -> str | None:
    """The name under which the size of an axis is kept; None for an axis of fixed size."""
    dim = port.shape[axis] if port.shape is not None else 0
    if isinstance(dim, int):
        return None
    # Axes without a name are each their own, but for the first ones, which in practice are the batch. Paddle calls all
    # axes of which it does not know the size alike.
    return dim if dim not in ("?", "", None) else "?" if axis == 0 else f"{port.name}:{axis}"


def told(size: int, sizes: Mapping[str, int]) -> str:
    """Return what was guessed, in words: ``32 was taken as the size of x:2``."""
    followers = [key for key, value in sizes.items() if value == FOLLOWS_BATCH]
    others = [key for key in sizes if key not in followers]
    parts = ((str(size), others), ("the batch's size", followers))
    return "; ".join(f"{what} was taken as the size of {', '.join(keys)}" for what, keys in parts if keys)


def _batch_key(ports: Sequence[Port]) -> str | None:
    first = next((port for port in ports if port.shape), None)
    return None if first is None else _key(first, 0)
