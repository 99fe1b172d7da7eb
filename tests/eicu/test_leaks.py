"""Nothing a sample holds became available after its prediction time, and no column off the allow-list is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_eicu import EICUExtractor
from mmnar_eicu.cohort import CohortName
from mmnar_eicu.tables import STAY, all_tables

SPECS = {spec.file: spec for spec in all_tables(respiratory=True, micro=True) if spec.clock is not None}
# Written out by hand, not taken from the specs: the columns that say when a row happened or was entered, and for how
# many minutes after it a row is unknown where there is no entry time.
CLOCKS: dict[str, tuple[tuple[str, ...], int]] = {
    "lab": (("labresultoffset", "labresultrevisedoffset"), 0),
    "vitalPeriodic": (("observationoffset",), 60),
    "vitalAperiodic": (("observationoffset",), 60),
    "medication": (("drugorderoffset",), 60),
    "infusionDrug": (("infusionoffset",), 60),
    "admissionDrug": (("drugoffset", "drugenteredoffset"), 0),
    "treatment": (("treatmentoffset",), 60),
    "diagnosis": (("diagnosisoffset",), 60),
    "admissionDx": (("admitdxenteredoffset",), 0),
    "pastHistory": (("pasthistoryoffset", "pasthistoryenteredoffset"), 0),
    "note": (("noteoffset", "noteenteredoffset"), 0),
    "physicalExam": (("physicalexamoffset",), 0),
    "carePlanGeneral": (("cplitemoffset",), 60),
    "carePlanEOL": (("cpleolsaveoffset",), 0),
    "respiratoryCare": (("respcarestatusoffset",), 60),
    "respiratoryCharting": (("respchartoffset", "respchartentryoffset"), 0),
    "microLab": (("culturetakenoffset",), 60),
}
KNOWS_THE_FUTURE = (
    "activeupondischarge",
    "dischargeweight",
    "unitdischarge",
    "hospitaldischarge",
    "drugstopoffset",
    "ventendoffset",
    "drugordercancelled",
    "apache",
    "organism",
    "sensitivitylevel",
)

# Rows known at minute 200 of unit stay 1, one of each table that says something, to be repeated late.
ROWS: dict[str, dict[str, Any]] = {
    "lab": {"labname": "lactate", "labresult": 2.5, "labmeasurenamesystem": "mmol/L"},
    "vitalPeriodic": {"heartrate": 90.0, "temperature": 37.0, "sao2": 97.0},
    "vitalAperiodic": {"noninvasivesystolic": 120, "noninvasivediastolic": 70, "noninvasivemean": 90},
    "medication": {"drugname": "WARFARIN", "drughiclseqno": 2812},
    "infusionDrug": {"drugname": "Norepinephrine (mcg/min)", "drugrate": "5"},
    "admissionDrug": {"drugname": "LASIX", "drughiclseqno": 77},
    "treatment": {"treatmentstring": "renal|dialysis|hemodialysis"},
    "diagnosis": {"diagnosisstring": "cardiovascular|shock / hypotension|sepsis"},
    "admissionDx": {"admitdxpath": "admission diagnosis|Elective|Yes"},
    "pastHistory": {"pasthistorypath": "notes/Progress Notes/Past History/Organ Systems/Renal/CKD/CKD"},
    "note": {"notetype": "Admission", "notepath": "notes/Progress Notes/Allergies/No"},
    "physicalExam": {
        "physicalexampath": "notes/Progress Notes/Physical Exam/Physical Exam/Neurologic/GCS/Motor Score/6"
    },
    "carePlanGeneral": {"cplgroup": "Care Limitation", "cplitemvalue": "Full therapy"},
    "carePlanEOL": {},
    "respiratoryCare": {"airwaytype": "Oral ETT"},
    "respiratoryCharting": {"respchartvaluelabel": "PEEP", "respchartvalue": "8"},
    "microLab": {"culturesite": "Blood"},
}
# What a late row may say instead: whatever it is, it must not be seen.
TEXTS = ("Comfort measures only", "x|y|z", "9", "Care Limitation", "FiO2", "No Artificial Airway", "creatinine")


def available(table: str, row: Mapping[str, Any]) -> float:
    """Minute at which a row exists, from the columns of `CLOCKS` alone."""
    (event, *entry), lag = CLOCKS[table]
    return float(row[event] + lag if not entry else max(row[event], row[entry[0]]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Mapping[str, pl.LazyFrame]:
    """Two patients and a bed move: unit stays 1 and 2 (from minute 700 of the episode) are one episode, 3 another."""
    from_conftest = request.getfixturevalue("new_extract")
    extract = from_conftest()
    extract.stay(1, unitdischargeoffset=690)
    extract.stay(2, hospitaladmitoffset=-820, unitdischargeoffset=2300, unitstaytype="transfer")
    extract.stay(3, patienthealthsystemstayid=11, uniquepid="001-2", unitdischargestatus="Alive")
    for table, columns in ROWS.items():
        for stay in (1, 3) if table != "carePlanEOL" else ():
            extract.add(table, stay, **columns, **dict.fromkeys(CLOCKS[table][0], 200))
    extractor = EICUExtractor(include_respiratory=True, include_micro=True)
    frames = request.getfixturevalue("opened")(extract.write(tmp_path_factory.mktemp("raw")), extractor)
    return {name: frame.collect().lazy() for name, frame in frames.items()}


def added(tables: Mapping[str, pl.LazyFrame], file: str, row: Mapping[str, Any]) -> dict[str, pl.LazyFrame]:
    """The tables with one row more."""
    spec = SPECS[file]
    full = pl.DataFrame([{name: row.get(name) for name in spec.schema}], schema=spec.schema)
    return {**tables, spec.name: pl.concat([tables[spec.name], full.lazy()])}


# Prediction time of the landmark on the clock of each unit stay; the episodes end at minutes 3000 of each.
PREDICTION: dict[CohortName, dict[int, int]] = {
    "landmark": {1: 1440, 2: 740, 3: 1440},
    "unit_discharge": {1: 3000, 2: 2300, 3: 3000},
}


@pytest.fixture(scope="module")
def untouched(small: Any, extracted: Any) -> Mapping[str, Any]:
    """What is made of `small`, by cohort."""
    return {
        cohort: extracted(EICUExtractor(cohort, include_respiratory=True, include_micro=True), small)
        for cohort in PREDICTION
    }


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_row_that_becomes_available_later_changes_nothing(
    small: Any, untouched: Mapping[str, Any], extracted: Any, data: st.DataObject
) -> None:
    cohort: CohortName = data.draw(st.sampled_from(["landmark", "unit_discharge"]))
    extractor = EICUExtractor(cohort=cohort, include_respiratory=True, include_micro=True)
    tables = small
    for _ in range(3):
        file = data.draw(st.sampled_from(sorted(CLOCKS)))
        stay = data.draw(st.sampled_from([1, 2, 3]))
        (event, *entry), lag = CLOCKS[file]
        edge = PREDICTION[cohort][stay] + 1
        late = data.draw(st.one_of(st.just(edge), st.integers(edge, 200_000)))
        row: dict[str, Any] = {STAY: stay, **ROWS[file]}
        for name, dtype in SPECS[file].schema.items():
            if dtype == pl.String and data.draw(st.booleans()):
                row[name] = data.draw(st.sampled_from(TEXTS))
            elif dtype == pl.Float64 and data.draw(st.booleans()):
                row[name] = data.draw(st.floats(0, 300))
        if file == "lab":
            row["labmeasurenamesystem"] = None
        if entry:
            # it may be about any time, as long as it was entered late
            row |= {event: data.draw(st.integers(-100, late)), entry[0]: late}
        else:
            row[event] = late - lag
        assert available(file, row) > PREDICTION[cohort][stay]
        if file == "physicalExam":
            row[event] = late
        tables = added(tables, file, row)
    assert extracted(extractor, tables).same_as(untouched[cohort])


@pytest.mark.parametrize("file", sorted(CLOCKS))
@pytest.mark.parametrize("cohort", ["landmark", "unit_discharge"])
def test_the_same_row_in_time_is_seen(small: Any, extracted: Any, file: str, cohort: CohortName) -> None:
    """The test above can fail: a row that is available at the very prediction time changes something."""
    extractor = EICUExtractor(cohort=cohort, include_respiratory=True, include_micro=True)
    names, lag = CLOCKS[file]
    new: dict[str, dict[str, Any]] = {
        "lab": {"labname": "sodium", "labresult": 140.0},
        "carePlanGeneral": {"cplgroup": "Care Limitation", "cplitemvalue": "Comfort measures only"},
    }
    row = {STAY: 2, **ROWS[file], **new.get(file, {}), **dict.fromkeys(names, PREDICTION[cohort][2] - lag)}
    tables = small
    if file == "physicalExam":
        # known with its note
        row["physicalexampath"] = "new"
        tables = added(tables, "note", {STAY: 2, **ROWS["note"], "noteoffset": row[names[0]], "noteenteredoffset": 0})
    before = extracted(extractor, tables)
    assert not extracted(extractor, added(tables, file, row)).same_as(before)


def test_a_later_hospital_stay_of_the_same_person_changes_nothing(small: Any, extracted: Any) -> None:
    extractor = EICUExtractor()
    before = extracted(extractor, small)
    again = {STAY: 9, "patienthealthsystemstayid": 99, "hospitaladmitoffset": 0}
    both = {}
    for name in ("patient", "outcomes"):
        first = small[name].filter(pl.col(STAY) == 3).collect()
        changed = [pl.lit(v).cast(first.schema[k]).alias(k) for k, v in again.items() if k in first.columns]
        both[name] = pl.concat([small[name], first.with_columns(changed).lazy()])
    after = extracted(extractor, {**small, **both})
    new = after.samples.height - 1
    assert new == before.samples.height
    assert after.samples.head(new).equals(before.samples)
    for name, frame in before.elements.items():
        assert after.elements[name].filter(pl.col("sample") < new).equals(frame), name


def test_no_allow_list_holds_a_column_that_knows_the_future() -> None:
    for spec in all_tables(respiratory=True, micro=True):
        listed = [c for c in spec.columns if any(word in c for word in KNOWS_THE_FUTURE)]
        assert listed == [] or spec.name == "outcomes", (spec.name, listed)


def test_features_see_no_outcome(small: Any, extracted: Any) -> None:
    """Other outcomes of the same episodes change labels and groups, and no element."""
    extractor = EICUExtractor()
    before = extracted(extractor, small)
    other = small["outcomes"].with_columns(
        pl.lit("Expired").alias("hospitaldischargestatus"),
        pl.col("hospitaldischargeoffset") + 777,
        pl.col("unitdischargeoffset") + pl.when(pl.col(STAY) == 1).then(0).otherwise(9000),
    )
    after = extracted(extractor, {**small, "outcomes": other})
    assert not after.samples.equals(before.samples)
    assert all(after.elements[name].equals(before.elements[name]) for name in before.elements)


def corrupted(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Fill columns with text that is no number, no time and no status."""
    return frame.with_columns(pl.lit("\u2603 not for your eyes").alias(name) for name in columns)


@pytest.mark.shared_data
@pytest.mark.parametrize("cohort", ["landmark", "unit_discharge"])
def test_the_demo_without_what_was_not_known(
    cohort: CohortName, demo_root: Path, tmp_path: Path, opened: Any, extracted: Any
) -> None:
    """On real records: columns off the lists corrupted, late rows changed, and other rows repeated late.

    Late rows are found by unit stay with plain joins here, from the prediction times of the samples.
    """
    extractor = EICUExtractor(cohort=cohort, include_respiratory=True, include_micro=True)
    before = extracted(extractor, opened(demo_root, extractor))
    assert before.samples.height > 900
    raw = {
        path.name.removesuffix(".csv.gz"): pl.read_csv(path, infer_schema=False) for path in demo_root.glob("*.csv.gz")
    }
    limit = last_minute(before.samples, raw["patient"])
    allowed: dict[str, set[str]] = {}
    for spec in extractor.tables():
        allowed.setdefault(spec.file, set()).update(spec.columns)
    for file, columns in allowed.items():
        frame = raw[file] if file not in CLOCKS else later(raw[file], file, limit)
        corrupted(frame, [c for c in frame.columns if c not in columns]).write_csv(tmp_path / f"{file}.csv")
    after = extracted(extractor, opened(tmp_path, extractor))
    assert after.samples.equals(before.samples)
    for name, frame in before.elements.items():
        assert after.elements[name].equals(frame), name


def last_minute(samples: pl.DataFrame, patient: pl.DataFrame) -> pl.DataFrame:
    """Prediction time on the clock of each unit stay of a sample's hospital stay."""
    number = [pl.col(c).cast(pl.Int64) for c in (STAY, "patienthealthsystemstayid", "hospitaladmitoffset")]
    stays = patient.select(number)
    own = samples.select("prediction_time", "id/episode", pl.col(f"id/{STAY}").alias(STAY))
    own = own.join(stays, on=STAY).with_columns(moment=pl.col("prediction_time") - pl.col("hospitaladmitoffset"))
    # the latest of a hospital stay's samples: what is late for that one is late for all
    moment = own.group_by("patienthealthsystemstayid").agg(pl.col("moment").max())
    joined = stays.join(moment, on="patienthealthsystemstayid")
    return joined.select(STAY, limit=pl.col("moment") + pl.col("hospitaladmitoffset"))


def later(frame: pl.DataFrame, file: str, limit: pl.DataFrame) -> pl.DataFrame:
    """Change what late rows say, and repeat every row late; rows of unit stays without a sample are repeated, too."""
    names, lag = CLOCKS[file]
    times = [pl.col(name).cast(pl.Float64) for name in names]
    known = frame.with_columns(pl.col(STAY).cast(pl.Int64)).join(limit, on=STAY, how="left", maintain_order="left")
    late = (pl.max_horizontal(times) + lag > pl.col("limit")) & pl.all_horizontal(t.is_not_null() for t in times)
    says = [c for c in frame.columns if c not in (*names, STAY, frame.columns[0], "labmeasurenamesystem")]
    texts = [c for c in says if SPECS[file].schema.get(c) == pl.String and c != "labname"]
    numbers = [c for c in says if SPECS[file].schema.get(c) == pl.Float64]
    changed = known.with_columns(
        [pl.when(late).then(pl.lit("Comfort measures only")).otherwise(pl.col(c)).alias(c) for c in texts]
        + [pl.when(late).then(pl.lit("55")).otherwise(pl.col(c)).alias(c) for c in numbers]
    )
    after = (pl.col("limit").fill_null(0) + 1).cast(pl.Int64).cast(pl.String)
    repeated = known.with_columns(after.alias(names[-1]) if len(names) > 1 else (after.alias(names[0])))
    return pl.concat([changed, repeated]).drop("limit").with_columns(pl.col(STAY).cast(pl.String))
