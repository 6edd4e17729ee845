"""What is in a zoo, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from wsgraph._counts import counted

__all__ = ["print_check_up"]

_SHOWN = 8
_EXAMPLES = 3
_COLUMNS_SHOWN = 12


def print_check_up(found: Mapping[str, Any], *, whole: bool = False) -> None:
    """Print what :func:`wsgraph.data.check_up` returned.

    Args:
        found: What is in the zoo.
        whole: Whether all columns are shown, however many there are.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for line in _lines(found):
        typer.echo(line)
    columns = found["columns"]
    fixed = [name for name, column in columns.items() if not whole and found["networks"] > 1 and _is_constant(column)]
    varied = [name for name in columns if name not in fixed]
    shown = varied if whole else varied[:_COLUMNS_SHOWN]
    table = Table("column", "values")
    for name in shown:
        table.add_row(escape(name), escape(_described(columns[name])))
    if shown:
        Console().print(table)
    if len(varied) > len(shown):
        typer.echo(f"... and {counted(len(varied) - len(shown), 'further column')}: wsgraph zoo info {found['zoo']}")
    if fixed:
        typer.echo(f"The same for all networks: {_listed([_value(name, columns[name]) for name in fixed])}")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for entry in found["architectures"][:_SHOWN]:
        yield f"{entry['networks']:>7,} x {entry['space']}"
    if len(found["architectures"]) > _SHOWN:
        rest = found["architectures"][_SHOWN:]
        yield f"{sum(entry['networks'] for entry in rest):>7,} in {len(rest)} further architectures"
    if found["splits"]:
        yield f"Splits: {', '.join(f'{name} {count:,}' for name, count in found['splits'].items())}"
    for group in found["groups"]:
        across = f"{group['in_several_splits']} of them in several splits" if group["in_several_splits"] else "each in one split"
        told = f", {across}" if found["splits"] else ""
        yield f"Groups by {group['by']}: {group['groups']:,} of up to {counted(group['largest'], 'network')}{told}"
    if duplicates := found["duplicates"]:
        across = f"{duplicates['across_splits']:,} in another split" if duplicates["across_splits"] else "in its split"
        yield f"Duplicates: {counted(duplicates['networks'], 'network has', 'networks have')} the weights of another one, {across}"
    left = {
        ("that cannot be read", "that cannot be read"): len(found["bad"]),
        ("that holds no network", "that hold no network"): len(found["skipped"]),
    }
    if out := [counted(count, *what) for what, count in left.items() if count]:
        yield f"Files left out: {', '.join(out)}"
    from wsgraph.data.exchange.noticed import by_reason

    reasons = by_reason(found["bad"])
    for reason, files in reasons[:_SHOWN]:
        yield f"  {files[0] if len(files) == 1 else f'{len(files):,} files, {_listed(files, shown=_EXAMPLES)}'}: {reason}"
    if len(reasons) > _SHOWN:
        yield f"  ... and {counted(len(reasons) - _SHOWN, 'further reason')}, in info['imported']['bad'] of the zoo"
    if found["dropped_non_finite"]:
        yield f"Networks left out for NaN or infinite weights: {found['dropped_non_finite']:,}"


def _is_constant(column: Mapping[str, Any]) -> bool:
    return column["distinct"] == 1 and not column["missing"]


def _value(name: str, column: Mapping[str, Any]) -> str:
    value = next(iter(column["counts"])) if "counts" in column else f"{column['min']:.4g}" if "min" in column else "infinite"
    return f"{name} = {value}"


def _described(column: Mapping[str, Any]) -> str:
    """Range or counts of a column."""
    texts = []
    is_class = "counts" in column and (column["values"] != "numbers" or column["distinct"] <= _SHOWN)
    if "min" in column and not is_class:
        texts.append("min {:.4g}, quartiles {:.4g} {:.4g} {:.4g}, max {:.4g}".format(column["min"], *column["quartiles"], column["max"]))
    elif not column["distinct"]:
        texts.append("no values")
    if is_class:
        counts = [f"{name} ({count})" for name, count in column["counts"].items()]
        texts.append(_listed(counts, column["distinct"]))
    if column.get("infinite"):
        texts.append(f"{column['infinite']} infinite")
    if column["missing"]:
        texts.append(f"{column['missing']} missing{' (NaN)' if column['values'] == 'numbers' else ''}")
    return ", ".join(texts)


def _listed(texts: Sequence[str], count: int | None = None, shown: int = _SHOWN) -> str:
    count = len(texts) if count is None else count
    return ", ".join(texts[:shown]) + (f" and {count - shown:,} more" if count > shown else "")
