"""The errors that spdexport raises, each with what the user needs to act on it.

The tree, with the exit status of the command line::

    SpdExportError                 70  a fault of spdexport's own
    ├── UsageError                  2  the options do not go together, or name nothing
    │   ├── IncompleteError         2  a factory or example inputs are missing
    │   └── RuntimeMissingError     2  ONNX Runtime is missing, or installed twice
    ├── InputError                  4  a file, factors, masks or shapes that cannot be used
    │   ├── SourceError             4  the model's file, its factory, or its state dict
    │   │   └── PickleRefusedError  4  loading would run code that the file brings
    │   ├── ComponentsError         4  V and U that do not fit the model
    │   ├── MaskError               4  masks that do not fit the components
    │   ├── PlanError               4  a plan that cannot be read or does not fit the model
    │   └── ExampleInputError       4  example inputs that cannot be read or made
    ├── ModelError                  5  the model itself
    │   ├── CaptureError            5  torch.export cannot trace it
    │   └── ExportError             5  it has no ONNX form as asked
    └── OutputError                74  something could not be written; what was there before is intact

This module imports nothing of the package, so that everything may import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class SpdExportError(Exception):
    """An error in three lines: what is wrong, where, and what to do about it.

    Attributes:
        what: The fault, in one sentence.
        where: The file, layer, option or input it was found in.
        hint: What the user can do.
        missing: The words that would complete the command line, where it lacks something; else empty.
        blanks: What in these words stands for something that nobody but the user knows.
    """

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 70
    missing: Sequence[str] = ()
    blanks: Sequence[str] = ()

    def __init__(self, what: str, *, where: str, hint: str) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell how another process makes the error anew: not by calling the class with ``args``, which are keywords."""
        return _again, (type(self), self.args), self.__dict__

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  to do: {self.hint}"


def _again(kind: type[SpdExportError], parts: tuple[str, ...]) -> SpdExportError:
    """Return an error as it was in another process, but for its attributes."""
    return kind.__new__(kind, *parts)


class UsageError(SpdExportError):
    """The options do not go together, or an option names nothing."""

    code = "usage"
    exit_status = 2


class IncompleteError(UsageError):
    """Something that the model cannot be read or traced without is given nowhere; it names all that is missing."""

    def __init__(self, what: str, *, where: str, hint: str, missing: Sequence[str], blanks: Sequence[str] = ()) -> None:
        super().__init__(what, where=where, hint=hint)
        self.missing = tuple(missing)
        self.blanks = tuple(blanks)


class RuntimeMissingError(UsageError):
    """ONNX Runtime is not installed, or in two packages that overwrite each other; or PyTorch is missing."""

    code = "runtime"


class InputError(SpdExportError):
    """A file, factors, masks or shapes that cannot be used."""

    code = "input"
    exit_status = 4


class SourceError(InputError):
    """The model's file cannot be read, its factory fails, or its state dict does not fit."""

    code = "source"


class PickleRefusedError(SourceError):
    """Loading or running the file would run code that it brings: pickled objects, TorchScript with effects.

    Attributes:
        names: What a pickle asks for, as far as it was seen.
    """

    code = "pickle"

    def __init__(self, what: str, *, where: str, hint: str, names: Sequence[str] = ()) -> None:
        super().__init__(what, where=where, hint=hint)
        self.names = tuple(names)


class ComponentsError(InputError):
    """Components (V, U) that match no layer, do not fit their layer, or were trained on another one."""

    code = "components"


class MaskError(InputError):
    """Masks that are not finite, have the wrong length, or name no layer with components."""

    code = "masks"


class PlanError(InputError):
    """A plan file that cannot be read, or is of another model than this one."""

    code = "plan"


class ExampleInputError(InputError):
    """Example inputs that cannot be read, made, or that the model does not take."""

    code = "inputs"


class ModelError(SpdExportError):
    """The model cannot be traced or exported."""

    code = "model"
    exit_status = 5


class CaptureError(ModelError):
    """torch.export cannot trace the module with these example inputs."""

    code = "capture"


class ExportError(ModelError):
    """The program has no ONNX form under the options given."""

    code = "export"


class OutputError(SpdExportError):
    """Something could not be written: a full disk, a missing permission; what was there before is intact."""

    code = "output"
    exit_status = 74


def first_line(error: BaseException) -> str:
    """Return the first line that an exception says, or its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
