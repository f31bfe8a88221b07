"""The time of a file beside that of the dense model, in pairs of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.ort.providers import Purpose
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.ort.timing import interleaved, ratio_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array
    from spdexport.ort.timing import Ratio

ROUNDS = 200
SECONDS = 10.0


def paired(
    model: ir.Model, dense: ir.Model, feeds: Mapping[str, Array], *, seed: int, seconds: float = SECONDS
) -> Ratio:
    """Return the time of a model over that of the dense one, on the same inputs."""
    settings = SessionSettings(optimized=True, purpose=Purpose.DEPLOYMENT, spinning=False)
    sessions = [open_session(ir.to_proto(one).SerializeToString(), settings) for one in (model, dense)]
    times = interleaved([session.runner(feeds) for session in sessions], rounds=ROUNDS, seconds=seconds)
    return ratio_of(*times, seed=seed)
