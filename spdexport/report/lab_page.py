"""The page of a lab: one template for the frame, the style of all pages, and scripts as they are, without a build step.

Whatever comes from files is put into the page by its scripts, as text: the template knows the name of the model alone.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from spdexport import __version__
from spdexport.report.pages import page_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = "index.html"

SCRIPTS = ("lab.mjs", "engine.mjs", "state.mjs", "layers.mjs", "outputs.mjs", "samples.mjs", "elements.mjs")
"""The modules of the page. Servers tell browsers that .mjs is a script even where .js has another meaning."""

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do: run its own scripts and WebAssembly, and load what is beside it; no network."""


def page_files(name: str) -> Mapping[str, bytes]:
    """Return the page and its scripts by their names.

    Args:
        name: What the page is called: the name of the model's file.
    """
    environment = page_environment()
    environment.globals["policy"] = Markup(POLICY)  # ours, and in it are quotes
    page = environment.get_template("lab/page.html.jinja").render(title=name, made_by=f"spdexport {__version__}")
    folder = resources.files("spdexport.report") / "templates" / "lab"
    return {PAGE: page.encode(), **{script: (folder / script).read_bytes() for script in SCRIPTS}}
