"""HTML pages from the templates, in which every name and reason is escaped: nobody vouches for where they come from."""

from __future__ import annotations

import jinja2

from spdexport.text import printable


def page_environment() -> jinja2.Environment:
    """Return what renders the templates of this package; a value that a template misses is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("spdexport.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
