"""The table, for people, for programs and for docs/performance.md."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tests.bench.rows import Cell, Row

HEADS = {"ours": "this server", "beside": "beside", "peer": "SDK", "tuned": "SDK, tuned", "limit": "limit"}
RATIOS = {"to beside": ("beside",), "to the SDK": ("peer", "tuned"), "to the limit": ("limit",)}
NONE = "-"
# Others' work when the bench begins: above 0.5 or so the rates say little.
LOAD = os.getloadavg()[0]


def figure(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(row: Row, who: str) -> str:
    cell = row.cells.get(who)
    if cell is None:
        return NONE
    shown = figure(cell.value)
    wrong = {"errors": cell.errors, "charged, not served": cell.unserved}
    said = ", ".join(f"{count} {what}" for what, count in wrong.items() if count)
    return f"{shown} ({said})" if said else shown


def _ratio(row: Row, *others: str) -> str:
    """How many times better than the best of the others; below 1 is worse."""
    values = [row.cells[who].value for who in others if who in row.cells and row.cells[who].value]
    if not values or "ours" not in row.cells or not row.cells["ours"].value:
        return NONE
    best = max(values) if row.more_is_better else min(values)
    ratio = row.cells["ours"].value / best if row.more_is_better else best / row.cells["ours"].value
    return f"{ratio:.2f}"


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    measured = {who for row in rows for who in row.cells}
    shown = {who: head for who, head in HEADS.items() if who in measured}
    ratios = {head: others for head, others in RATIOS.items() if measured.intersection(others)}
    heads = ["", *shown.values(), *ratios, "wanted", "wanted here"]
    lines = [
        [
            row.name,
            *(_cell(row, who) for who in shown),
            *(_ratio(row, *others) for others in ratios.values()),
            *(figure(wanted) if wanted else NONE for wanted in (row.wanted, row.wanted_here)),
        ]
        for row in rows
    ]
    return [heads, *lines]


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/performance.md."""
    heads, *lines = _lines(rows)
    rule = ["---", *["---:"] * (len(heads) - 1)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *lines])
    return f"{described()}\n\n{table}"


def show(rows: Sequence[Row], console: Console) -> None:
    heads, *lines = _lines(rows)
    table = Table(title=described(), box=SIMPLE)
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=not head)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for row in rows:
        for who, cell in row.cells.items():
            if cell.odd:
                console.print(f"{row.name}, {HEADS.get(who, who)}, one of the errors: {cell.odd}", markup=False)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    measured = [asdict(row) | {"wanted_here": row.wanted_here} for row in rows]
    return {"measured": _now(), "machine": machine(), "rows": measured}


def described() -> str:
    return f"Measured on {_now()[:10]}: {machine()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> str:
    shared = f"{os.cpu_count()} cores shared by buyers, chain and servers"
    return f"{shared}, Python {platform.python_version()}, load before the start {LOAD:.1f}"


def is_good(rows: Sequence[Row]) -> bool:
    """No error and nobody charged for nothing, as far as this server goes."""
    ours = [row.cells.get("ours", Cell(0)) for row in rows]
    return not any(cell.errors or cell.unserved for cell in ours)
