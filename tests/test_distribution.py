"""The source distribution has what its tests need; ``make release-check`` builds it and runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALWAYS = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "spdexport"}
"""What setuptools takes without being told."""
LEFT_OUT = {".gitignore", ".ci"}
"""What tells tools of a repository something, and nobody who has no repository."""


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no repository")
def test_every_file_of_the_repository_is_in_the_source_distribution_or_left_out_on_purpose():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    words = [line.split() for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()]
    named = {name for first, *names in filter(None, words) if first in ("include", "graft") for name in names}
    assert tracked - named - ALWAYS - LEFT_OUT == set()
    assert all((ROOT / name).exists() for name in named)
