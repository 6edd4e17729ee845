"""Put the tables of `results/*.md` into `README.md`, between the marks that name them.

Run from the repository root, after `wsgraph bench ... --output benchmarks/results`:

    python benchmarks/readme.py
"""

from __future__ import annotations

import re
from pathlib import Path

from wsgraph.files import write_atomically

FOLDER = Path(__file__).parent
MARK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def filled(page: str, results: Path) -> str:
    """The page with every marked table replaced by the one in the folder of results.

    Raises:
        ValueError: If a mark has no end.
    """
    if page.count("<!-- table: ") != len(MARK.findall(page)) or page.count("<!-- end -->") != len(MARK.findall(page)):
        raise ValueError("Expected '<!-- end -->' after every '<!-- table: NAME -->'.")
    return MARK.sub(lambda match: f"{match[1]}{(results / match['name']).with_suffix('.md').read_text(encoding='utf-8')}{match[3]}", page)


if __name__ == "__main__":
    page = FOLDER / "README.md"
    text = filled(page.read_text(encoding="utf-8"), FOLDER / "results")
    write_atomically(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))
