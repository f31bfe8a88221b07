"""A trained network that a package carries: silero-vad 6.2.3, under the MIT licence beside it.

Its last layer is a sigmoid near 0, its states are an LSTM's: what rounding explains there was judged wrongly once.
`benchmarks/real_models.py` tries more of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spdexport import pipeline
from spdexport.verification.result import Status

NETWORK = Path(__file__).parents[1] / "data" / "silero_vad" / "silero_vad_16k_sequence.onnx"


def speech(folder: Path) -> Path:
    """Return a file of inputs: tones in noise, 3 windows of 576 samples, and states that are not zero."""
    rng = np.random.default_rng(0)
    times = np.arange(3 * 576) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * 180 * times) * (1 + np.sin(2 * np.pi * 3 * times)) + 0.01 * rng.normal(size=1728)
    states = {name: 0.5 * rng.normal(size=(1, 1, 128)).astype(np.float32) for name in ("h", "c")}
    np.savez(folder / "inputs.npz", input=sound.astype(np.float32).reshape(3, 576), **states)
    return folder / "inputs.npz"


@pytest.mark.parametrize("form", ["factorized", "auto"])
def test_a_trained_network_is_converted_and_verified_twice(form: str, tmp_path: Path) -> None:
    inputs = speech(tmp_path)
    done = pipeline.convert(NETWORK, tmp_path / "m.onnx", form=form, inputs=inputs)
    assert done.verification is not None
    assert done.verdict is Status.PASS, done.verification.edges
    alone = pipeline.verify(tmp_path / "m.onnx", inputs=inputs)
    assert alone.verdict is Status.PASS, alone.edges
    against = pipeline.verify(tmp_path / "m.onnx", against=NETWORK)
    assert against.verdict is Status.PASS, against.edges
