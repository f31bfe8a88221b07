"""The pytest plugin: the fixture ``assert_equivalent``. Every pytest run loads it, so that it imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.verification.result import Verification


@pytest.fixture
def assert_equivalent() -> Callable[..., Verification]:
    """``assert_equivalent(onnx, module, inputs)``: a file computes what a module does; see ``spdexport.testing``."""
    from spdexport import testing

    return testing.assert_equivalent
