"""Makes the small networks of ``networks.py`` importable from every test folder, and tests the same in every place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# Where the tests themselves run in GitHub Actions, the command line would talk to its runner.
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# How long an example takes says nothing about what it shows, and machines are shared.
settings.register_profile("spdexport", deadline=None)
settings.load_profile("spdexport")
