import csv
import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from mmnar_eicu.simulate import simulate
from mmnar_eicu.simulated.columns import COLUMNS
from mmnar_lightning.__main__ import main
from mmnar_lightning.simulation import MARKER

STAY = "patientunitstayid"
HOSPITAL_STAY = "patienthealthsystemstayid"
PERSONS = 600


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / f"{name}.csv.gz", infer_schema=False)


def numbers(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(c).cast(pl.Int64) for c in columns)


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "raw"
    simulate(folder, PERSONS, seed=3, progress=False)
    return folder


@pytest.fixture(scope="module")
def truth(extract: Path) -> pl.DataFrame:
    return pl.read_parquet(extract / "truth" / "*.parquet")


@pytest.mark.shared_data
def test_headers_are_those_of_the_real_tables(demo_root: Path) -> None:
    for name, columns in COLUMNS.items():
        with gzip.open(demo_root / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            assert tuple(next(csv.reader(file))) == columns, name


def test_every_table_is_there_with_its_header_and_plain_csv_reads_it(extract: Path) -> None:
    rows = json.loads((extract / MARKER).read_text())["rows"]
    assert sorted(p.name for p in extract.glob("*.csv.gz")) == sorted(f"{name}.csv.gz" for name in COLUMNS)
    for name, columns in COLUMNS.items():
        with gzip.open(extract / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            assert tuple(next(reader)) == columns
            lengths = [len(row) for row in reader]
        assert set(lengths) == {len(columns)}, name
        assert len(lengths) == rows[name] > 0


def test_row_ids_are_unique_and_every_row_belongs_to_a_unit_stay(extract: Path) -> None:
    stays = set(table(extract, "patient")[STAY])
    for name, columns in COLUMNS.items():
        frame = table(extract, name)
        assert frame[columns[0]].is_unique().all(), name
        if STAY in columns:
            assert set(frame[STAY]) <= stays, name


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    simulate(tmp_path / "one", 40, seed=7, progress=False)
    simulate(tmp_path / "other", 40, seed=7, progress=False)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")
    simulate(tmp_path / "seed", 40, seed=8, progress=False)
    assert hashes(tmp_path / "seed")["lab.csv.gz"] != hashes(tmp_path / "one")["lab.csv.gz"]


def test_the_first_patients_are_the_same_however_many_follow(extract: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "few", 300, seed=3, progress=False)  # ends inside the second chunk
    few = pl.read_parquet(tmp_path / "few" / "truth" / "*.parquet")
    many = pl.read_parquet(extract / "truth" / "*.parquet")
    assert few["uniquepid"].n_unique() == 300
    assert few.equals(many.head(len(few)))
    kept = set(table(tmp_path / "few", "patient")[STAY])
    for name, columns in COLUMNS.items():
        small, large = table(tmp_path / "few", name), table(extract, name)
        if STAY in columns:
            large = large.filter(pl.col(STAY).is_in(kept))
        assert small.sort(columns[0]).equals(large.sort(columns[0])), name


def test_another_extract_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    simulate(folder, 5, progress=False)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    simulate(folder, 5, progress=False)
    options: dict[str, Any] = {"patients": 6, "seed": 1, "mechanism": "mcar", "strength": 2.0}
    for name, value in options.items():
        with pytest.raises(FileExistsError, match=f"{name} .*, not {value!r}"):
            simulate(folder, **{"patients": 5, "progress": False, name: value})
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "at least 1"),
        ({"mechanism": "sometimes"}, "not one of mcar, mar, mnar"),
        ({"strength": -1.0}, "not negative"),
        ({"seed": -1}, "seed at least 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path / "raw", **{"progress": False, **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_quirks_of_stays(extract: Path) -> None:
    patient = table(extract, "patient")
    assert patient["age"].is_in(["15", "16", "17"]).any()
    assert (patient["age"] == "> 89").any()
    assert patient["hospitaldischargestatus"].null_count() > 0
    assert set(patient["unitstaytype"]) == {"admit", "transfer", "stepdown/other", "readmit"}
    offsets = numbers(patient, "hospitaladmitoffset", "unitdischargeoffset", "hospitaldischargeoffset")
    assert (offsets["hospitaladmitoffset"] == -480_446).any()
    assert (offsets["unitdischargeoffset"] < 0).any()
    assert offsets["unitdischargeoffset"].is_between(0, 1440).any()
    assert (offsets["unitdischargeoffset"] > 1440).mean() > 0.6  # type: ignore[operator]
    # gaps between the unit stays of a hospital stay, on the hospital's clock
    clock = offsets.filter(pl.col("hospitaladmitoffset") > -400_000).with_columns(start=-pl.col("hospitaladmitoffset"))
    clock = clock.with_columns(end=pl.col("start") + pl.col("unitdischargeoffset"))
    clock = clock.sort(HOSPITAL_STAY, "start").with_columns(
        gap=pl.col("start") - pl.col("end").shift(1).over(HOSPITAL_STAY)
    )
    moves = clock.filter(pl.col("unitstaytype") == "transfer")["gap"]
    assert moves.is_between(0, 60).all()
    assert (moves == 0).mean() > 0.5  # type: ignore[operator]
    assert (moves == 60).any()
    assert (clock.filter(pl.col("unitstaytype") == "readmit")["gap"] > 60).all()
    by_person = patient.group_by("uniquepid").agg(pl.col("hospitalid").n_unique())
    assert (by_person["hospitalid"] > 1).any()
    hospital = table(extract, "hospital")
    assert set(patient["hospitalid"]) <= set(hospital["hospitalid"])
    numbered = clock.with_columns(pl.col("unitvisitnumber").cast(pl.Int64)).filter(pl.col("gap").is_not_null())
    assert (numbered["unitvisitnumber"] == 1).any(), "visit numbers are reversed in a few hospital stays"


def test_quirks_of_records(extract: Path) -> None:
    apache = table(extract, "apachePatientResult")
    assert (apache["predictedhospitalmortality"] == "-1").any()
    assert apache["predictedhospitalmortality"].str.contains(r"E-\d$").any()
    assert apache.group_by(STAY).len()["len"].eq(2).all()
    lab = numbers(table(extract, "lab"), "labresultoffset", "labresultrevisedoffset")
    assert (lab["labresultoffset"] < 0).any()
    assert (lab["labresultrevisedoffset"] - lab["labresultoffset"] > 60).any()
    assert lab["labresult"].null_count() > 0
    assert lab.filter(pl.col("labresult").is_null())["labresulttext"].str.starts_with("<").all()
    for name in ("lab", "medication", "vitalAperiodic", "treatment", "diagnosis", "infusionDrug"):
        frame = table(extract, name)
        assert frame.drop(COLUMNS[name][0]).is_duplicated().any(), name
    medication = table(extract, "medication")
    assert medication["drughiclseqno"].null_count() > 0
    assert 0.3 < medication["drugname"].null_count() / len(medication) < 0.5
    assert (table(extract, "vitalAperiodic")["noninvasivesystolic"] == "0").any()
    assert (table(extract, "vitalPeriodic")["systemicsystolic"] == "0").any()
    assert set(table(extract, "infusionDrug")["drugrate"]) >= {"0", "OFF"}
    charted = table(extract, "respiratoryCharting")["respchartvalue"]
    assert charted.str.contains("%|[a-z]").any()
    assert table(extract, "diagnosis")["icd9code"].str.contains(", ").any()


@pytest.mark.parametrize(
    ("name", "clock", "value"),
    [
        ("diagnosis", "diagnosisoffset", pl.col("diagnosisstring").str.contains("cardiac arrest")),
        ("treatment", "treatmentoffset", pl.col("treatmentstring").str.contains("palliative")),
        ("vitalPeriodic", "observationoffset", pl.col("heartrate") == "0"),
        ("infusionDrug", "infusionoffset", pl.col("drugrate") == "99"),
        ("lab", "labresultrevisedoffset", pl.col("labresult").cast(pl.Float64) == 6.91),
        ("note", "noteenteredoffset", pl.col("notepath").str.contains("Interventions/Major/Shock")),
        ("carePlanGeneral", "cplitemoffset", pl.col("cplitemvalue") == "Comfort measures only"),
    ],
)
def test_records_of_the_future_tell_who_dies(
    extract: Path, truth: pl.DataFrame, name: str, clock: str, value: pl.Expr
) -> None:
    """After the first day they separate the outcomes; up to then they don't."""
    sample = truth.filter("cohort/landmark", pl.col("label/mortality_hospital").is_not_null())
    # minutes from the first ICU admission of the hospital stay, which is the unit stay that the truth names
    stays = numbers(table(extract, "patient"), "hospitaladmitoffset", STAY).rename({"hospitaladmitoffset": "admitted"})
    first = truth.select(HOSPITAL_STAY, STAY).join(stays.select(STAY, "admitted"), on=STAY).drop(STAY)
    stays = stays.with_columns(pl.col(HOSPITAL_STAY).cast(pl.Int64)).join(first, on=HOSPITAL_STAY, suffix="/first")
    shift = stays.select(STAY, HOSPITAL_STAY, shift=pl.col("admitted/first") - pl.col("admitted"))
    rows = numbers(table(extract, name), clock, STAY).join(shift, on=STAY)
    rows = rows.with_columns(time=pl.col(clock) + pl.col("shift"), sign=value.fill_null(False))

    def area(kept: pl.DataFrame) -> float:
        signs = kept.group_by(HOSPITAL_STAY).agg(pl.col("sign").any())
        joined = sample.join(signs, on=HOSPITAL_STAY, how="left", validate="1:1")
        return float(roc_auc_score(joined["label/mortality_hospital"], joined["sign"].fill_null(False)))

    assert area(rows) > 0.9
    assert area(rows.filter(pl.col("time") <= 1440)) < 0.7


def test_event_times_alone_would_betray(extract: Path) -> None:
    """Rows whose event is of the first hours and whose entry is not: a clock on the event alone lets them in."""
    for name, event, entry in (
        ("lab", "labresultoffset", "labresultrevisedoffset"),
        ("note", "noteoffset", "noteenteredoffset"),
        ("pastHistory", "pasthistoryoffset", "pasthistoryenteredoffset"),
        ("admissionDrug", "drugoffset", "drugenteredoffset"),
    ):
        frame = numbers(table(extract, name), event, entry)
        assert frame.filter(pl.col(event) <= 600, pl.col(entry) > 1440).height > 50, name
        assert (frame[entry] >= frame[event]).all(), name


@pytest.mark.parametrize("mechanism", ["mcar", "mnar"])
def test_the_mechanism_reaches_the_tables(tmp_path: Path, mechanism: str) -> None:
    simulate(tmp_path / "raw", 1500, 2, mechanism, 2.0, progress=False)  # type: ignore[arg-type]
    truth = pl.read_parquet(tmp_path / "raw" / "truth" / "*.parquet")
    infusion = numbers(table(tmp_path / "raw", "infusionDrug"), "infusionoffset").filter(pl.col("infusionoffset") < 100)
    there = truth[STAY].cast(pl.String).is_in(set(infusion[STAY])).to_numpy()
    assert (there == truth["available/infusion"].to_numpy()).mean() > 0.98
    area = roc_auc_score(there, truth["latent/0"].to_numpy())
    # standard error of an AUROC of 1,700 stays: 0.015
    assert abs(area - 0.5) < 0.05 if mechanism == "mcar" else area > 0.75


def test_time_and_size_grow_no_faster_than_patients(tmp_path: Path) -> None:
    """Rows a patient, and the largest frame held, stay the same: chunks have a fixed size."""
    held: list[int] = []
    original = pl.DataFrame.write_csv

    def recording(frame: pl.DataFrame, *arguments: object, **options: object) -> object:
        held.append(len(frame))
        return original(frame, *arguments, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_csv", recording)
        simulate(tmp_path / "small", 512, progress=False)
        largest = max(held)
        simulate(tmp_path / "large", 2048, progress=False)
    assert max(held) < 1.2 * largest
    small, large = (json.loads((tmp_path / n / MARKER).read_text())["rows"] for n in ("small", "large"))
    assert np.array([large[t] / small[t] for t in ("lab", "patient", "note")]) == pytest.approx(4, rel=0.1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "eicu", str(tmp_path / "raw"), "--patients", "8", "--seed", "3", "--strength", "0.5"]
    assert main([*words, "--progress", "false"]) == 0
    assert json.loads((tmp_path / "raw" / MARKER).read_text())["patients"] == 8
    assert capsys.readouterr().out.strip() == str(tmp_path / "raw")
    for bad, message in (
        (["simulate", "nowhere", str(tmp_path / "x")], "no simulator 'nowhere'; there are: eicu"),
        (["simulate", "eicu", str(tmp_path / "x"), "--mechanism", "never"], "mechanism"),
        (["simulate", "eicu", str(tmp_path / "x"), "--patients", "many"], "patients"),
        (["simulate", "eicu"], "required"),
        ([*words[:3], "--patients", "9"], "patients 8, not 9"),
    ):
        assert main(bad) != 0
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
    shutil.rmtree(tmp_path / "raw")
