"""HTML pages from the templates, in which every name and reason is escaped: nobody vouches for where they come from.

One script is in a page. Its hash is in the page's own policy, so that a browser runs nothing else, whatever a name may
hold. Pictures are in the page, too, and none is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time

import jinja2
from markupsafe import Markup

from spdexport.text import printable

TABLES, CARDS = "table.js", "cards.js"
"""The scripts: one sorts and filters tables, the other cards."""


def page_environment(script: str = TABLES) -> jinja2.Environment:
    """Return what renders the templates of this package; a value that a template misses is an error.

    Args:
        script: The one of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spdexport.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    assert environment.loader is not None, "it was given"
    code = environment.loader.get_source(environment, script)[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    # Markup: both are this package's own.
    environment.globals["script"] = Markup(code)
    environment.globals["policy"] = Markup(
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    return environment


def date() -> str:
    """Return the time in UTC, to the minute; that of SOURCE_DATE_EPOCH where builds are to be repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = float(epoch) if epoch.isdigit() else time.time()
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
