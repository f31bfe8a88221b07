"""For test suites: assert that an ONNX file computes what its model does.

With pytest, the fixture ``assert_equivalent`` is this function; it comes with the package::

    def test_the_file_is_the_model(assert_equivalent):
        assert_equivalent("model.onnx", make_model(), torch.randn(2, 3, 32, 32))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from spdexport.pipeline import verify
from spdexport.quiet import quiet
from spdexport.report.terminal import as_text
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.options import OptionsDict
    from spdexport.verification.result import Verification

WIDTH = 100
"""Columns of the message; pytest indents it by a few more."""


class NotEquivalentError(AssertionError):
    """A file was checked and is not equivalent, or it could not be decided. The message is the terminal report.

    Attributes:
        verification: All that was found.
    """

    def __init__(self, verification: Verification) -> None:
        super().__init__(as_text(verification, width=WIDTH))
        self.verification = verification


def assert_equivalent(
    onnx: str | Path,
    module: Source = None,
    inputs: str
    | Path
    | ExampleInputs
    | torch.Tensor
    | tuple[torch.Tensor, ...]
    | dict[str, torch.Tensor]
    | None = None,
    /,
    *,
    allow_inconclusive: bool = False,
    providers: Sequence[str] | None = None,
    thorough: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    **options: Unpack[OptionsDict],
) -> Verification:
    """Assert that an ONNX file computes what a model computes, to rounding, on every edge.

    Args:
        onnx: The file.
        module: The model: an ``nn.Module``, an ``ExportedProgram``, a file that the command line takes as SOURCE, or
            another ONNX file. None to hold the file to what it says itself, or with the option ``factory``.
        inputs: Inputs to compare on, beside generated ones: a tensor, a tuple of them, a dict by name, or a file.
        allow_inconclusive: Whether a check that could not decide is no failure, such as one on a provider that is not
            there.
        providers: Providers of ONNX Runtime to check beside the CPU: ``cuda``, ``openvino``. None for CUDA where it can
            run, ``["cpu"]`` for the CPU alone.
        thorough: Whether to compare every layer's output too, and to leave out no input for time.
        atol: The absolute error that outputs may have, in the place of what rounding explains.
        rtol: The same, relative to the right value.
        **options: As for ``spdexport.verify``.

    Returns:
        What was found.

    Raises:
        NotEquivalentError: The verdict is ``fail``, or it is ``inconclusive`` and that was not allowed.
        SpdExportError: The file, the model or the inputs cannot be used.
    """
    __tracebackhide__ = True  # pytest shows the line of the test, and the message
    if inputs is not None:
        options = {**options, "inputs": inputs}
    # What torch logs while it traces would stand behind the message: a screen of it for every test that fails.
    with quiet():
        verification = verify(
            onnx, against=module, providers=providers, thorough=thorough, atol=atol, rtol=rtol, **options
        )
    accepted = {Status.PASS, Status.INCONCLUSIVE} if allow_inconclusive else {Status.PASS}
    if verification.verdict not in accepted:
        raise NotEquivalentError(verification)
    return verification
