"""The rank that a layer's effective weight may be truncated to, as the user allows it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import UsageError
from spdexport.lowrank import rank_for_energy, rank_for_error, truncation_errors
from spdexport.planning.patterns import check_patterns, matches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import FloatArray
    from spdexport.planning.choices import PlanOptions


SLACK = 1e-9
"""How far shares of singular values, which are sums in float64, may differ from machine to machine."""


def parse_rank(text: str) -> tuple[str | None, int]:
    """Read ``N`` or ``PATTERN=N``: the pattern of layers, None for all, and the rank.

    Raises:
        UsageError: The text has not this form.
    """
    pattern, equals, number = text.rpartition("=")
    # Of at most nine digits: no weight has such a rank, and Python itself refuses texts of thousands of them.
    if not re.fullmatch(r"0*[1-9]\d{0,8}", number.strip(), re.ASCII) or (equals and not pattern):
        raise UsageError(
            f"{text!r} is not a rank.", where=f"--rank {text}", hint="Give --rank 16 or --rank conv2=16, of at least 1."
        )
    return (pattern if equals else None), int(number)


def check_truncation(options: PlanOptions) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: Ranks, energy and error contradict each other, are out of range, or have visible masks beside them.
    """
    whole = [text for text in options.rank if parse_rank(text)[0] is None]
    given = [("--rank", bool(whole)), ("--energy", options.energy is not None)]
    given.append(("--max-error", options.max_error is not None))
    names = [name for name, is_given in given if is_given]
    if len(names) > 1 or len(whole) > 1:
        raise UsageError(
            "Each of them says how far all weights are truncated.",
            where=" and ".join(names if len(names) > 1 else ["--rank"] * 2),
            hint="Give one of them; --rank LAYER=N may stand beside it.",
        )
    for name, value, low in (("--energy", options.energy, False), ("--max-error", options.max_error, True)):
        if value is not None and not (0 < value <= 1 or (low and value == 0)):
            raise UsageError(
                f"{value} is not a share from 0 to 1.", where=name, hint="Give --energy 0.999, for example."
            )
    if options.truncates and options.keep_masks:
        raise UsageError(
            "A truncated weight has no components for a mask to stay visible on.",
            where=f"--keep-masks and {(names or ['--rank'])[0]}",
            hint="Give one of them.",
        )


def check_ranks(options: PlanOptions, names: Iterable[str]) -> None:
    """Refuse a ``--rank LAYER=N`` that names no layer.

    Raises:
        UsageError: Names it.
    """
    check_patterns([p for p, _ in map(parse_rank, options.rank) if p is not None], names, "--rank")


def allows(options: PlanOptions, name: str, sigma: FloatArray, rank: int) -> bool:
    """Return whether the options allow to truncate a layer to this rank, found on a machine that rounds otherwise."""
    energy, error = options.energy, options.max_error
    least = allowed_rank(
        replace(
            options,
            energy=None if energy is None else max(energy - SLACK, 0.0),
            max_error=None if error is None else error + SLACK,
        ),
        name,
        sigma,
    )
    return least is not None and rank >= least


def allowed_rank(options: PlanOptions, name: str, sigma: FloatArray) -> int | None:
    """Return the rank that a layer may be truncated to; None where its weight is to stay exact.

    Args:
        options: What the user allows. A rank for the layer itself is stronger than what is said of all.
        name: The layer.
        sigma: The singular values of its effective weight, (groups, n).
    """
    rank = given_rank(options, name)
    if rank is not None:
        return rank
    if options.energy is not None:
        return rank_for_energy(sigma, options.energy)
    return None if options.max_error is None else rank_for_error(sigma, options.max_error)


def allowed_error(options: PlanOptions, name: str, sigma: FloatArray) -> FloatArray | None:
    """Return the relative Frobenius error that a layer's weight may have in each group, whatever its form.

    None for none.

    Args:
        options: What the user allows. A rank allows what truncating to it comes to.
        name: The layer.
        sigma: The singular values of its effective weight, (groups, n).
    """
    rank = given_rank(options, name)
    if rank is not None:
        return truncation_errors(sigma, rank)
    if options.energy is not None:
        return np.full(len(sigma), math.sqrt(1 - options.energy))
    return None if options.max_error is None else np.full(len(sigma), options.max_error)


def given_rank(options: PlanOptions, name: str) -> int | None:
    """Return the rank that the options give for a layer.

    One for it is stronger than what is said of all, of whatever kind.
    """
    rules = [parse_rank(text) for text in options.rank]
    own = [rank for pattern, rank in rules if pattern is not None and matches(name, (pattern,))]
    if own:
        return own[-1]
    if options.energy is not None or options.max_error is not None:
        return None
    return next((rank for pattern, rank in rules if pattern is None), None)
