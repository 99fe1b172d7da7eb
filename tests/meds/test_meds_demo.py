"""Laboratory values and diagnoses of the open MIMIC-IV demo, written as MEDS, against counts that are made apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmnar_meds import MEDSDataModule

pytestmark = pytest.mark.shared_data
US = pl.Datetime("us")


@pytest.fixture(scope="module")
def raw(open_data: Callable[[str], Path]) -> dict[str, pl.DataFrame]:
    folder = open_data("mimic-iv-demo") / "hosp"
    found = {
        name: pl.read_csv(folder / f"{name}.csv.gz", infer_schema_length=None, try_parse_dates=True)
        for name in ("patients", "admissions", "labevents", "diagnoses_icd")
    }
    return found


@pytest.fixture(scope="module")
def dataset(raw: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as MEDS: two shards, labels a day after each admission."""
    root = tmp_path_factory.mktemp("demo") / "meds"
    patients, admissions = raw["patients"], raw["admissions"]
    subject, none = pl.col("subject_id").cast(pl.Int64), pl.lit(None)

    def rows(frame: pl.DataFrame, time: pl.Expr, code: pl.Expr, value: pl.Expr = none) -> pl.DataFrame:
        return frame.select(subject, time=time.cast(US), code=code, numeric_value=value.cast(pl.Float32))

    unit = pl.col("valueuom").fill_null("UNK")
    parts = [
        rows(patients, pl.date(pl.col("anchor_year") - pl.col("anchor_age"), 1, 1), pl.lit("MEDS_BIRTH")),
        rows(patients, none, "GENDER//" + pl.col("gender")),
        rows(
            raw["labevents"],
            pl.col("charttime"),
            pl.concat_str(pl.lit("LAB"), "itemid", unit, separator="//"),
            pl.col("valuenum"),
        ),
        rows(
            raw["diagnoses_icd"].join(admissions, on="hadm_id"),
            pl.col("dischtime"),
            pl.concat_str(pl.lit("DIAGNOSIS//ICD"), "icd_version", "icd_code", separator="//"),
        ),
    ]
    events = pl.concat(parts).sort("subject_id", "time", nulls_last=False)
    labels = admissions.select(
        subject,
        prediction_time=pl.col("admittime").cast(US) + timedelta(hours=24),
        boolean_value=pl.col("hospital_expire_flag") == 1,
    )
    (root / "data").mkdir(parents=True)
    (root / "tasks").mkdir()
    for k in range(2):
        events.filter(pl.col("subject_id") % 2 == k).write_parquet(root / f"data/{k}.parquet")
    labels.write_parquet(root / "tasks/mortality_hospital.parquet")
    return root


def test_counts_are_those_of_plain_loops(raw: dict[str, pl.DataFrame], dataset: Path, tmp_path: Path) -> None:
    records = MEDSDataModule(dataset, tmp_path / "stores").records
    samples = records.samples
    labs: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
    codes: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
    for row in raw["labevents"].filter(pl.col("valuenum").is_not_null()).iter_rows(named=True):
        labs[row["subject_id"]].append((row["charttime"], f"LAB//{row['itemid']}//{row['valueuom'] or 'UNK'}"))
    coded = raw["diagnoses_icd"].join(raw["admissions"], on="hadm_id", suffix="_stay")
    for row in coded.iter_rows(named=True):
        code = f"DIAGNOSIS//ICD//{row['icd_version']}//{row['icd_code']}"
        codes[row["subject_id"]].append((row["dischtime"], code))
    assert len(samples) == raw["admissions"].height > 100
    assert int(samples["label/mortality_hospital"].sum()) == int(raw["admissions"]["hospital_expire_flag"].sum())
    week, kept = timedelta(hours=168), records.schema.modality("labs").items
    names = {name.removesuffix("_count") for name in kept if name.endswith("_count")}
    known, before = [], []
    for subject, moment in samples.select("id/subject_id", "prediction_time").iter_rows():
        known.append(sum(moment - week <= time <= moment and code in names for time, code in labs[subject]))
        before.append(len({code for time, code in codes[subject] if time <= moment}))
    assert samples["observed/labs"].to_list() == [count > 0 for count in known]
    assert samples["observed/diagnoses"].to_list() == [count > 0 for count in before]
    values = records.column("modality/labs.arrow", "values")
    found = values[:, [k for k, name in enumerate(kept) if name.endswith("_count")]]
    assert int(np.nansum(found)) == sum(known) > 10_000
    assert len(records.column("modality/diagnoses.arrow", "sample")) == sum(before) > 1000
    assert len(names) == 200
