"""What is being done, as long work tells it: a text, which knows besides how far the work is."""

from __future__ import annotations

from spdexport.names import count


class Step(str):
    """A step of the work that is counted, in words: ``planning: 3 of 20 layers``.

    Whoever wants a text has one; a terminal makes of the numbers the time that is left.

    Attributes:
        name: What is done, the same for the whole step.
        done: How many are done.
        total: Of how many; None where nobody knows.
    """

    name: str
    done: int
    total: int | None


class Remark(str):
    """What the user should know before the work goes on, which stays to be read; no step."""

    __slots__ = ()


def step(name: str, *, done: int, total: int | None = None, unit: str = "layer", detail: str = "") -> Step:
    """Return what to tell of a step that is counted.

    Args:
        name: What is done, without a colon.
        done: How many are done.
        total: Of how many; None where nobody knows.
        unit: What is counted, one of it.
        detail: Which of them is next.
    """
    counted = count(done, unit) if total is None else f"{done} of {count(total, unit)}"
    made = Step(f"{name}: {counted}{detail and f', {detail}'}")
    made.name, made.done, made.total = name, done, total
    return made


def name_of(told: str) -> str:
    """Return the step that a text is of: what stands before its colon."""
    return told.name if isinstance(told, Step) else told.partition(":")[0]
