"""Checks of rows: what is wrong is named by file, column, count and row numbers, never by a value."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from mmnar_lightning.extract import ExtractError

SHOWN = 10


def refuse(frame: pl.LazyFrame, file: str, wrong: Mapping[str, pl.Expr]) -> None:
    """Stop at the first rule that rows break.

    Args:
        frame: A table, in the order of its file.
        file: Its path below the folder, without suffix.
        wrong: By message, what is true in the rows that break the rule. A null is no breach.

    Raises:
        ExtractError: Names the file, the rule (which names the column), the count and the first row numbers, from 1.
    """
    if not wrong:
        return
    numbered = frame.select(
        breach.fill_null(False).alias(str(k)) for k, breach in enumerate(wrong.values())
    ).with_row_index("row", offset=1)
    found = numbered.select(
        [pl.col(str(k)).sum().alias(f"{k}/count") for k in range(len(wrong))]
        + [pl.col("row").filter(pl.col(str(k))).head(SHOWN).implode().alias(f"{k}/rows") for k in range(len(wrong))]
    ).collect(engine="streaming")
    for k, message in enumerate(wrong):
        count = found[f"{k}/count"].item()
        if count:
            raise broken(file, message, count, found[f"{k}/rows"].item().to_list())


def broken(file: str, message: str, count: int, rows: list[int]) -> ExtractError:
    """The error for rows that break a rule."""
    shown = ", ".join(map(str, rows)) + (", …" if count > len(rows) else "")
    noun = "row" if count == 1 else "rows"
    return ExtractError(f"{file}.parquet: {message}: {count} {noun} ({noun} {shown})")
