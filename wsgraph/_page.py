"""HTML pages that need no other file and no network: a template beside a script, and only that script may run."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from string import Template

__all__ = ["filled_page"]


def filled_page(package: str, name: str, **fields: str) -> str:
    """The page ``NAME.html`` of a package with its script ``NAME.js``, which is all that may run in it.

    Args:
        package: The package that holds both files.
        name: Their name without the ending.
        **fields: What stands in the template after a dollar sign, as HTML.

    Returns:
        The page.
    """
    folder = resources.files(package)
    template, script = (folder.joinpath(f"{name}{ending}").read_text(encoding="utf-8") for ending in (".html", ".js"))
    # Whatever a file may have smuggled into the page does not run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(fields, script=script, digest=digest)
