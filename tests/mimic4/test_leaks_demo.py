"""On real records: what was not known at the prediction time, and what is off the allow-lists, changes no byte.

As `test_leaks.py` does with people made by hand. Late rows are found by patient with plain joins, by clocks that are
written out by hand (`RawTables.clocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from mmnar_mimic4 import MIMIC4Extractor
from mmnar_mimic4.cohort import CohortName

if TYPE_CHECKING:
    from tests.mimic4.conftest import Extracted, RawTables

    NewRaw = Callable[[], RawTables]
    Run = Callable[..., Extracted]

# What late rows say instead.
OTHERWISE = {
    "valuenum": "55",
    "value": "55",
    "amount": "55",
    "originalrate": "55",
    "drug": "Warfarin",
    "drug_type": "MAIN",
    "spec_type_desc": "URINE",
    "careunit": "Surgical Intensive Care Unit (SICU)",
    "eventtype": "transfer",
    "curr_service": "SURG",
}
# Known only from the later of these: the end, and what is told with it.
FIXED = {
    "icu/inputevents": (("endtime", "storetime"), ("amount",)),
    "icu/procedureevents": (("endtime", "storetime"), ()),
    "hosp/microbiologyevents": (("charttime", "storetime"), ("org_name",)),
}


def moment(column: str) -> pl.Expr:
    # storetime of procedureevents has fractions of seconds at times
    return pl.col(column).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")


def written(time: pl.Expr) -> pl.Expr:
    return time.dt.strftime("%Y-%m-%d %H:%M:%S")


def later(frame: pl.DataFrame, table: str, clock: tuple[str, str | None, int], limit: pl.DataFrame) -> pl.DataFrame:
    """Change what rows say that were not known by the limit of their patient, and repeat every row late."""
    event, entry, lag = clock
    known = frame.join(limit, on="subject_id", how="left", maintain_order="left")
    available = moment(event) + pl.duration(minutes=lag)
    if entry is not None:
        both = pl.max_horizontal(moment(event), moment(entry))
        available = pl.when(pl.col(entry).is_null()).then(available).otherwise(both)
    late = (available > pl.col("limit")).fill_null(False)
    # a year past the end: what is open at the limit still is
    after = written(pl.col("limit") + pl.duration(days=365))
    changed = known.with_columns(
        pl.when(late).then(pl.lit(text)).otherwise(pl.col(name)).alias(name)
        for name, text in OTHERWISE.items()
        if name in frame.columns
    )
    if table in FIXED:
        (first, second), told = FIXED[table]
        open_ = (pl.max_horizontal(moment(first), moment(second)) > pl.col("limit")).fill_null(False)
        ends = [] if first == event else [first]
        new = [pl.when(open_).then(after).otherwise(pl.col(name)).alias(name) for name in [*ends, second]]
        new += [pl.when(open_).then(pl.lit("31")).otherwise(pl.col(name)).alias(name) for name in told]
        changed = changed.with_columns(new)
    second_later = pl.col("limit") + pl.duration(seconds=1)
    if entry is not None:
        repeated = known.with_columns(written(second_later).alias(entry))
    else:
        repeated = known.with_columns(written(second_later - pl.duration(minutes=lag)).alias(event))
    repeated = repeated.filter(pl.col("limit").is_not_null())
    return pl.concat([changed, repeated]).drop("limit").sample(fraction=1, shuffle=True, seed=1)


@pytest.mark.shared_data
@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_the_demo_without_what_was_not_known(
    cohort: CohortName, demo_root: Path, new_raw: NewRaw, extracted: Run, tmp_path: Path
) -> None:
    one = MIMIC4Extractor(cohort=cohort, include_micro=True)
    before = extracted(one, demo_root)
    assert before.samples.height > 50
    limit = before.samples.select(subject_id="patient", limit="prediction_time")
    allowed: dict[str, set[str]] = {}
    for spec in one.tables():
        allowed.setdefault(spec.file, set()).update(spec.columns)
    rows, clocks = {}, new_raw().clocks
    for table, columns in allowed.items():
        path = demo_root / f"{table}.csv.gz"
        if not path.is_file():
            assert table.startswith("note/")
            continue
        frame = pl.read_csv(path, infer_schema=False)
        rows[table] = frame.height
        frame = later(frame, table, clocks[table], limit) if table in clocks else frame
        garbage = pl.lit("\u2603 not for your eyes")
        target = tmp_path / "raw" / f"{table}.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        frame.with_columns(garbage.alias(c) for c in frame.columns if c not in columns).write_csv(target)
    # the demo has neither notes nor films
    assert rows.keys() >= {table for table in clocks if table.startswith(("hosp/", "icu/"))}
    after = extracted(one, tmp_path / "raw")
    found = after.differing(before)
    assert not found, {name: len(samples) for name, samples in found.items()}
    assert after.stored(tmp_path / "b") == before.stored(tmp_path / "a")
    # as many rows were late as would be seen
    late = [after.counts[name, "not yet known at the prediction time"] for name in ("labevents", "chartevents")]
    assert min(late) > 100
