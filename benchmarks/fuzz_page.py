"""The page of results that fuzz.py and fuzz_coverage.py write a section of each."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent / "results" / "fuzz.md"
TITLE = "# Damaged files"
SEEDED, GUIDED = "## By seed", "## Guided by coverage"


def write_section(heading: str, lines: list[str], page: Path = PAGE) -> None:
    """Put a section in the place of the one with the same heading, and leave the other as it is."""
    text = page.read_text() if page.exists() else ""
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    sections = {f"## {name}": f"## {part.strip()}\n" for name, part in sections.items()}
    sections[heading] = "\n".join([heading, "", *lines]).strip() + "\n"
    ordered = [sections[name] for name in (SEEDED, GUIDED) if name in sections]
    page.write_text("\n".join([TITLE + "\n", *ordered]))
