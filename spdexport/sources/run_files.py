"""What the files of an SPD run directory are called. Nothing heavy is imported: names are looked at before the work."""

from __future__ import annotations

import re

CHECKPOINT = re.compile(r"model_(?P<step>\d+)\.pth")
"""The name of a checkpoint, with the step it was saved at."""

CONFIG = "final_config.yaml"
"""The run's configuration, beside its checkpoints."""


def is_run_file(name: str) -> bool:
    """Tell whether a file of that name in a run directory is read."""
    return name == CONFIG or CHECKPOINT.fullmatch(name) is not None
