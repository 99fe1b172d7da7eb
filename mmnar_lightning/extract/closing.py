"""The table that a prepare ends with: what was read, what was excluded and why, what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl
from rich.table import Table

SMALL = 10
ABSENT = "optional table is absent"
PATTERNS = 8


def closing_table(title: str, counts: Iterable[Iterable[Any]], samples: pl.DataFrame) -> Table:
    """Make the closing table.

    Args:
        title: Name of the store.
        counts: ``[table, what, count]`` each, from the manifest.
        samples: The store's samples: ``label/<task>``, ``observed/<modality>``.

    Returns:
        A table of counts; never a value of a record, and no exact count of samples below ten.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("table", no_wrap=True)
    table.add_column("what")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    last = None
    for name, what, count in counts:
        if (name, what) == ("samples", "kept") or name.startswith("label/"):
            # stands below, with its share
            continue
        table.add_row("" if name == last else str(name), str(what), "" if what == ABSENT else _cell(count), "")
        last = name
    n = samples.height
    table.add_section()
    table.add_row("samples", "all", f"{n:,}", "")
    for column in (c for c in samples.columns if c.startswith("label/")):
        known = n - samples[column].null_count()
        positive = int(samples[column].sum() or 0)
        share = f"{positive / known:.1%} of {known:,} known" if known else "none known"
        table.add_row(column, "positive", _cell(positive), share if positive >= SMALL else "")
    table.add_section()
    observed = [c for c in samples.columns if c.startswith("observed/")]
    for column in observed:
        present = int(samples[column].sum())
        table.add_row(column, "observed", _cell(present), f"{present / n:.1%}" if present >= SMALL else "")
    table.add_section()
    patterns = samples.group_by(observed).len().sort(["len", *observed], descending=True).head(PATTERNS)
    for row in patterns.rows(named=True):
        names = " ".join(c.removeprefix("observed/") for c in observed if row[c]) or "nothing"
        table.add_row("pattern", names, _cell(row["len"]), f"{row['len'] / n:.1%}" if row["len"] >= SMALL else "")
    return table


def _cell(count: int) -> str:
    return f"{count:,}" if count >= SMALL or count == 0 else f"< {SMALL}"
