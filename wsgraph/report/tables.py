"""Tables of a report: numbers as people read them, the best of every column, heads that sort."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from wsgraph.report.charts import marker
from wsgraph.scores import better, is_count, label, places

__all__ = ["Cell", "Column", "amount", "column_of", "read_cells", "score_cell", "table"]

_ROUNDING = 1e-9
_SCORES = ("tau", "r2", "accuracy", "cross_entropy", "mse", "mse_unedited")


class Column(NamedTuple):
    """Head of a column, whether more (1) or less (-1) is better, and what it shares with its neighbours."""

    head: str
    better: int = 0
    group: str = ""


class Cell(NamedTuple):
    """What a cell shows, the number it is sorted by, and what is set smaller behind it."""

    text: str
    value: float = math.nan
    error: str = ""


def _base(name: str) -> str:
    return re.split(r"_scale_|_on_", name)[0]


def column_of(name: str, head: str | None = None, group: str = "") -> Column:
    """The column of a score or cost."""
    return Column(label(name) if head is None else head, better(name), group)


def amount(value: float) -> str:
    """A cost with three digits.

    Example:
        >>> [amount(value) for value in (float("nan"), 1234.4, 15.26, 0.0271)]
        ['-', '1,234', '15.3', '0.0271']
    """
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 1 else f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def score_cell(name: str, found: tuple[float, float], note: str = "") -> Cell:
    """Mean and standard error of a score, or a cost."""
    mean, error = found
    base = _base(name)
    if math.isnan(mean):
        return Cell("-", mean, note)
    if is_count(base):
        return Cell(f"{mean:,.0f}" if mean == round(mean) else f"{mean:,.1f}", mean, note)
    if base not in _SCORES:
        return Cell(amount(mean), mean, note)
    digits = places(name)
    return Cell(f"{mean:.{digits}f}", mean, ("" if math.isnan(error) else f" ± {error:.{digits}f}") + note)


_NUMBER = re.compile(r"(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?)( ± \S+)?( \(.*\))?")


def read_cells(texts: Sequence[str]) -> list[Cell]:
    """Cells of a column of a Markdown table, with numbers where all of them are numbers.

    Example:
        >>> [(cell.text, cell.value) for cell in read_cells(["2,589,631", "3e+01", "-"])]
        [('2,589,631', 2589631.0), ('3e+01', 30.0), ('-', nan)]
        >>> read_cells(["permutation", "12"])[1].value
        nan
    """
    matches = [_NUMBER.fullmatch(text) for text in texts]
    if not any(matches) or any(match is None and text != "-" for match, text in zip(matches, texts, strict=True)):
        return [Cell(text) for text in texts]
    return [
        Cell("-") if match is None else Cell(match[1], float(match[1].replace(",", "")), (match[2] or "") + (match[3] or ""))
        for match in matches
    ]


def table(
    title: str,
    columns: Sequence[Column],
    rows: Mapping[str, Sequence[Cell]],
    *,
    head: str = "model",
    sort: int | None = None,
    styles: Mapping[str, int] | None = None,
) -> str:
    """A table whose heads sort it.

    Args:
        title: What the table shows, for those who hear it.
        columns: Heads of all columns but the first.
        rows: Cells by the text of the first column.
        head: Head of the first column.
        sort: Index of the column by which rows are sorted, the best first.
        styles: Styles of the series that rows have in charts.
    """
    names = list(rows)
    if sort is not None:
        sign = -columns[sort].better or 1
        names.sort(key=lambda name: (math.isnan(value := rows[name][sort].value), 0.0 if math.isnan(value) else sign * value, name))
    known = [[cells[k].value for cells in rows.values() if not math.isnan(cells[k].value)] for k in range(len(columns))]
    # One value is not the best of many, and neither are all when they are equal but for rounding.
    best = [
        (max(values) if column.better > 0 else min(values))
        if column.better and values and not math.isclose(min(values), max(values), rel_tol=_ROUNDING)
        else math.nan
        for column, values in zip(columns, known, strict=True)
    ]
    numeric = [bool(values) for values in known]
    heads = [f'<th scope="col" aria-sort="none" class="first"><button type="button" data-column="0">{escape(head)}</button></th>']
    for k, column in enumerate(columns):
        order = ("descending" if column.better > 0 else "ascending") if sort == k else "none"
        # The first press brings the best to the top, or what is largest where nothing is better.
        first = "ascending" if column.better < 0 or not numeric[k] else "descending"
        kind = ' class="number"' if numeric[k] else ""
        heads.append(
            f'<th scope="col" aria-sort="{order}"{kind}><button type="button" data-column="{k + 1}" data-first="{first}">'
            f"{escape(column.head)}</button></th>"
        )
    groups = ""
    if any(column.group for column in columns):
        runs: list[list[int | str]] = []
        for column in columns:
            if runs and runs[-1][0] == column.group:
                runs[-1][1] = int(runs[-1][1]) + 1
            else:
                runs.append([column.group, 1])
        cells = "".join(
            f'<th scope="colgroup" colspan="{width}"><span>{escape(str(group))}</span></th>' if group else f'<td colspan="{width}"></td>'
            for group, width in runs
        )
        groups = f'<tr class="groups"><td class="first"></td>{cells}</tr>'
    body = []
    for name in names:
        mark = marker(styles[name]) if styles and name in styles else ""
        cells = "".join(_cell(cell, math.isclose(cell.value, best[k], rel_tol=_ROUNDING), numeric[k]) for k, cell in enumerate(rows[name]))
        body.append(f'<tr><th scope="row" class="first{" marked" if mark else ""}">{mark}{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title)}"><table>'
        f"<thead>{groups}<tr>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: Cell, best: bool, numeric: bool) -> str:
    value = "" if math.isnan(cell.value) else f' data-value="{cell.value:.17g}"'
    kind = " ".join(name for name, applies in (("number", numeric), ("best", best), ("long", len(cell.text) > 40)) if applies)
    error = f"<span>{escape(cell.error)}</span>" if cell.error else ""
    said = '<span class="hidden">best: </span>' if best else ""
    return f'<td class="{kind}"{value}>{said}{escape(cell.text)}{error}</td>'
