"""What stands in the tables of a simulated extract: the quirks of the real ones, the mechanism, and the truth."""

import csv
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from mmnar_lightning.simulation import MechanismKind
from mmnar_mimic4.simulate import simulate
from mmnar_mimic4.tfrecords import read_example, read_tfrecord

SUBJECT = "subject_id"


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / f"{name}.csv.gz", infer_schema=False)


def timed(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return frame.with_columns(pl.col(c).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us") for c in columns)


def read_truth(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "truth" / "*.parquet").with_columns(pl.col(SUBJECT, "hadm_id").cast(pl.String))


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "raw"
    simulate(folder, 600, seed=3, film_size=32, progress=False)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More people, of the later release and without films."""
    folder = tmp_path_factory.mktemp("many") / "raw"
    simulate(folder, 2048, seed=5, release="3.1", films="none", progress=False)
    return folder


def test_quirks_of_stays(many: Path) -> None:
    people = table(many, "hosp/patients")
    assert (people["anchor_age"] == "91").any()
    assert not people["anchor_age"].cast(pl.Int64).is_between(90, 90).any()
    assert people["anchor_year_group"].n_unique() == 5
    assert people["anchor_year"].cast(pl.Int64).is_between(2110, 2210).all()
    stays = timed(table(many, "hosp/admissions"), "admittime", "dischtime", "deathtime", "edregtime")
    ages = stays.join(people, on=SUBJECT).select(
        pl.col("anchor_age").cast(pl.Int64) + pl.col("admittime").dt.year() - pl.col("anchor_year").cast(pl.Int64)
    )
    assert (ages.to_series() < 18).any()
    gap = stays.sort(SUBJECT, "admittime").select(
        (pl.col("admittime") - pl.col("dischtime").shift(1)).over(SUBJECT).dt.total_minutes()
    )
    minutes = set(gap.to_series().drop_nulls())
    assert minutes & set(range(16))
    assert 1440 in minutes  # a day apart is still one episode
    assert minutes & set(range(1441, 2 * 1440))  # and a little more is none, but within the grace
    assert (stays["dischtime"] < stays["admittime"]).any()
    died = stays.filter(pl.col("hospital_expire_flag") == "1", pl.col("dischtime") >= pl.col("admittime"))
    after = died["deathtime"] > died["dischtime"]
    assert after.any()
    assert not after.all()
    assert (stays["edregtime"] < stays["admittime"]).any()
    kinds = set(stays["admission_type"])
    assert {"EW EMER.", "ELECTIVE", "EU OBSERVATION", "OBSERVATION ADMIT", "SURGICAL SAME DAY ADMISSION"} <= kinds
    moves = table(many, "hosp/transfers")
    assert moves["hadm_id"].null_count() > 0
    assert set(moves["eventtype"]) == {"ED", "admit", "transfer", "discharge"}
    # of the later release: its languages and insurances
    assert "English" in set(stays["language"])
    assert "Private" in set(stays["insurance"])


def test_quirks_of_records(extract: Path) -> None:
    lab = table(extract, "hosp/labevents")
    assert 0.2 < lab["hadm_id"].null_count() / len(lab) < 0.4
    assert 0.09 < lab["valuenum"].null_count() / len(lab) < 0.15
    assert (lab["value"] == "___").mean() > 0.03  # type: ignore[operator]
    assert lab.filter(pl.col("value") == "___")["valuenum"].null_count() < (lab["value"] == "___").sum()
    assert lab["storetime"].null_count() > 0
    assert (lab["valuenum"].cast(pl.Float64) > 10_000).any()
    scripts = timed(table(extract, "hosp/prescriptions"), "starttime", "stoptime")
    assert (scripts["stoptime"] < scripts["starttime"]).mean() > 0.01  # type: ignore[operator]
    assert set(scripts["drug_type"]) == {"MAIN", "BASE"}
    codes = table(extract, "hosp/diagnoses_icd")
    assert set(codes["icd_version"]) == {"9", "10"}
    assert codes["icd_code"].str.starts_with("0").any()
    titles = table(extract, "hosp/d_icd_diagnoses").select("icd_code", "icd_version")
    assert codes.join(titles, on=["icd_code", "icd_version"], how="anti").is_empty()
    given = table(extract, "hosp/emar")[SUBJECT].n_unique() / scripts[SUBJECT].n_unique()
    assert 0.55 < given < 0.75
    micro = table(extract, "hosp/microbiologyevents")
    assert micro["org_name"].null_count() > len(micro) / 2
    assert micro["charttime"].null_count() > 0
    assert micro["chartdate"].null_count() == 0
    notes = table(extract, "note/radiology")
    assert 0.1 < notes["hadm_id"].null_count() / len(notes) < 0.6
    assert table(extract, "note/discharge")["hadm_id"].null_count() == 0
    films = table(extract, "cxr/mimic-cxr-2.0.0-metadata")
    assert (films["StudyTime"].str.extract(r"^(\d+)\.").str.len_chars() < 6).any()
    assert films["StudyDate"].str.contains(r"^2[12]\d{6}$").all()
    assert set(films["ViewPosition"].drop_nulls()) == {"AP", "PA", "LATERAL", "LL"}
    assert films["ViewPosition"].null_count() > 0


def test_notes_survive_plain_csv(extract: Path) -> None:
    for name, kind in (("radiology", "RR"), ("discharge", "DS")):
        with gzip.open(extract / f"note/{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        texts = [row["text"] for row in rows]
        assert sum("\n" in text for text in texts) == len(texts) > 300
        assert any('"' in text for text in texts), name
        assert any("," in text for text in texts)
        assert any("___" in text for text in texts)
        assert all(row["note_id"] == f"{row[SUBJECT]}-{kind}-{row['note_seq']}" for row in rows)


def test_films_lie_where_the_metadata_says(extract: Path) -> None:
    films = table(extract, "cxr/mimic-cxr-2.0.0-metadata")
    listed = {
        f"p{row[SUBJECT][:2]}/p{row[SUBJECT]}/s{row['study_id']}/{row['dicom_id']}.jpg"
        for row in films.rows(named=True)
    }
    root = extract / "cxr" / "files"
    assert {str(p.relative_to(root)) for p in root.rglob("*.jpg")} == listed
    with Image.open(root / min(listed)) as image:
        assert image.size == (32, 32)
        image.load()


def test_embeddings_are_records_of_1376_numbers(tmp_path: Path) -> None:
    simulate(tmp_path / "raw", 60, films="embeddings", progress=False)
    films = table(tmp_path / "raw", "cxr/mimic-cxr-2.0.0-metadata")
    found = sorted((tmp_path / "raw/cxr/files").rglob("*.tfrecord"))
    assert len(found) == len(films) > 5
    for path in found:
        (record,) = read_tfrecord(path)
        assert record.data is not None
        vector = read_example(record.data)["embedding"]
        assert isinstance(vector, np.ndarray)
        assert vector.shape == (1376,)
        assert np.isfinite(vector).all()


def test_films_and_notes_exist_only_in_their_years(many: Path, extract: Path) -> None:
    truth = read_truth(extract)
    seen = truth.filter(pl.col("available/post_discharge/cxr") | pl.col("available/icu_landmark/cxr"))
    assert len(seen) > 20
    assert seen["year"].is_between(2011, 2016).all()
    rooms = table(extract, "hosp/admissions").filter(pl.col("edregtime").is_not_null())
    assert set(table(extract, "cxr/mimic-cxr-2.0.0-metadata")[SUBJECT]) <= set(rooms[SUBJECT])
    late = read_truth(many).filter(pl.col("year") >= 2020)
    assert len(late) > 100
    notes = pl.concat([table(many, "note/radiology"), table(many, "note/discharge")])
    # some of those people were there before 2020, too
    before = set(read_truth(many).filter(pl.col("year") < 2020)[SUBJECT])
    assert not set(notes[SUBJECT]) & (set(late[SUBJECT]) - before)


@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar"])
def test_availability_follows_the_mechanism(tmp_path: Path, mechanism: MechanismKind) -> None:
    simulate(tmp_path / "raw", 2048, 2, mechanism, 2.0, films="none", progress=False)
    truth = read_truth(tmp_path / "raw").filter("cohort/post_discharge")
    for modality in ("labs", "treatments", "radiology", "discharge"):
        there = truth[f"available/post_discharge/{modality}"].to_numpy()
        propensity = truth[f"propensity/{modality}"].to_numpy()
        # six standard errors of a mean over 1,800 people are 0.07
        assert there.mean() == pytest.approx(propensity.mean(), abs=0.07)
        latent = np.column_stack([truth[f"latent/{axis}"].to_numpy() for axis in range(3)])
        area = max(abs(roc_auc_score(there, latent[:, axis]) - 0.5) for axis in range(3))
        known = max(abs(roc_auc_score(there, truth[f"value/structured/{k}"].to_numpy()) - 0.5) for k in range(3))
        # standard error of an AUROC here: 0.02 or less
        if mechanism == "mcar":
            assert area < 0.1
            assert known < 0.1
            assert propensity.std() < 1e-12
        elif mechanism == "mar":
            assert known > 0.1
            assert propensity.std() > 0.05
        else:
            assert area > 0.1


def rule(
    rows: pl.DataFrame, truth: pl.DataFrame, cohort: str, event: str, entry: str | None, lag: int = 60
) -> pl.Series:
    """Whether each sample has a row in its window that was known by its prediction time."""
    rows = timed(rows, event, *([entry] if entry else []))
    known = pl.col(event) + pl.duration(minutes=lag)
    if entry:
        known = pl.when(pl.col(entry).is_null()).then(known).otherwise(pl.max_horizontal(event, entry))
    moments = truth.select(SUBJECT, "hadm_id", start="window_start", now=f"prediction_time/{cohort}")
    joined = rows.drop("hadm_id").with_columns(known=known).join(moments, on=SUBJECT)
    kept = joined.filter(pl.col(event) >= pl.col("start"), pl.col("known") <= pl.col("now"))
    return truth["hadm_id"].is_in(set(kept["hadm_id"]))


@pytest.mark.parametrize("cohort", ["post_discharge", "icu_landmark"])
def test_availability_in_the_tables_is_that_of_the_truth(extract: Path, many: Path, cohort: str) -> None:
    """The rule, written once more: rows of the patient, in the window, known by the prediction time."""
    for folder in (extract, many):
        truth = read_truth(folder).filter(f"cohort/{cohort}")
        lab = table(folder, "hosp/labevents").filter(pl.col("valuenum").cast(pl.Float64) < 10_000)
        chart = table(folder, "icu/chartevents").filter(pl.col("valuenum").cast(pl.Float64) < 9000)
        order = table(folder, "hosp/prescriptions").filter(pl.col("drug_type") == "MAIN")
        rows = {
            "labs": (lab, "charttime", "storetime"),
            "vitals": (chart.filter(pl.col("itemid") != "224641"), "charttime", "storetime"),
            "treatments": (order, "starttime", None),
            "radiology": (table(folder, "note/radiology"), "charttime", "storetime"),
        }
        if folder is extract:
            films = table(folder, "cxr/mimic-cxr-2.0.0-metadata").filter(
                ~pl.col("ViewCodeSequence_CodeMeaning").str.contains("lateral")
            )
            clock = pl.concat_str("StudyDate", pl.col("StudyTime").str.extract(r"^(\d+)").str.zfill(6))
            films = films.with_columns(
                hadm_id=None, time=clock.str.to_datetime("%Y%m%d%H%M%S").dt.to_string("%Y-%m-%d %H:%M:%S")
            )
            rows["cxr"] = (films, "time", None)
        for modality, (frame, event, entry) in rows.items():
            found = rule(frame, truth, cohort, event, entry)
            wrong = (found != truth[f"available/{cohort}/{modality}"]).sum()
            assert wrong == 0, f"{modality}: {wrong} of {len(truth)}"
            assert 0.1 < found.mean() < 0.99, modality  # type: ignore[operator]
        if cohort == "post_discharge":
            # by the admission: their charttime is a date alone
            notes = timed(table(folder, "note/discharge"), "charttime", "storetime")
            known = pl.coalesce("storetime", pl.col("charttime") + pl.duration(days=1))
            first, last = (truth.select(pl.col(c).cast(pl.String), now="prediction_time/post_discharge", of="hadm_id")
                           for c in ("hadm_id", "last_hadm_id"))  # fmt: skip
            both = pl.concat([first, last.rename({"last_hadm_id": "hadm_id"})])
            kept = notes.with_columns(known=known).join(both, on="hadm_id").filter(pl.col("known") <= pl.col("now"))
            found = truth["hadm_id"].is_in(set(kept["of"]))
            assert (found == truth["available/post_discharge/discharge"]).all()


def test_outcomes_in_the_tables_are_those_of_the_truth(many: Path) -> None:
    truth = read_truth(many)
    stays = timed(table(many, "hosp/admissions"), "admittime", "dischtime", "deathtime", "edregtime")
    stays = stays.filter(pl.col("dischtime") >= pl.col("admittime"))
    stays = stays.filter((pl.col("deathtime") >= pl.col("admittime")).fill_null(True))
    people = table(many, "hosp/patients").with_columns(dod=pl.col("dod").str.to_date() + pl.duration(days=1))
    sample = truth.filter("cohort/post_discharge").join(people.select(SUBJECT, "dod"), on=SUBJECT)
    now = pl.col("prediction_time/post_discharge")
    # whatever begins after the prediction time is another episode
    later = stays.join(sample.select(SUBJECT, now), on=SUBJECT).filter(pl.col("admittime") > now)
    back = later.group_by(SUBJECT).agg(pl.col("admittime").min().alias("back"))
    died = stays.group_by(SUBJECT).agg(pl.col("deathtime").min())
    joined = sample.join(back, on=SUBJECT, how="left").join(died, on=SUBJECT, how="left")
    death = pl.min_horizontal("deathtime", pl.col("dod").cast(pl.Datetime("us")))

    def within(time: pl.Expr, days: int) -> pl.Expr:
        return ((time > now) & (time <= now + pl.duration(days=days))).fill_null(False)

    found = joined.select(
        readmission_30d_any=within(pl.col("back"), 30),
        readmission_90d=within(pl.col("back"), 90),
        mortality_30d=within(death, 30),
        mortality_180d=within(death, 180),
        death_or_readmission_30d=within(pl.col("back"), 30) | within(death, 30),
    )
    last = joined["year_high/post_discharge"] >= 2022
    for task in found.columns:
        label = joined[f"label/post_discharge/{task}"]
        assert label.is_null().equals(last)
        assert (label.filter(~last) == found[task].filter(~last)).all(), task
        risk = joined[f"risk/post_discharge/{task}"].filter(~last)
        rate, expected = float(label.drop_nulls().to_numpy().mean()), risk.to_numpy()
        # four standard errors
        assert rate == pytest.approx(expected.mean(), abs=4 * (rate * (1 - rate) / len(risk)) ** 0.5)
        assert roc_auc_score(label.filter(~last), risk) > 0.6
    # some come back, or die, within a minute or a day of every border
    since = joined.select((pl.col("back") - now).dt.total_seconds()).to_series().drop_nulls()
    assert {60, 30 * 86_400 - 60, 30 * 86_400 + 60, 90 * 86_400 + 60} <= set(since)
    assert (since > 180 * 86_400).any()
    assert joined.select((death > now + pl.duration(days=180)).any()).item()


def test_records_of_the_future_tell_what_comes(many: Path) -> None:
    """After the prediction time the worst of labs separates who returns or dies; within the window it hardly does."""
    truth = read_truth(many)
    again = truth.filter(pl.col("episode") == 1).select(SUBJECT, back="window_start")
    known = pl.col("label/post_discharge/mortality_30d").is_not_null()
    truth = truth.filter("cohort/post_discharge", known).join(again, on=SUBJECT, how="left")
    lab = timed(table(many, "hosp/labevents"), "charttime", "storetime").filter(pl.col("itemid") == "50813")
    lab = lab.with_columns(pl.col("valuenum").cast(pl.Float64)).filter(pl.col("valuenum") < 10_000).drop("hadm_id")
    joined = lab.join(truth, on=SUBJECT)
    now, time, label = pl.col("prediction_time/post_discharge"), pl.col("charttime"), "death_or_readmission_30d"

    def area(rows: pl.DataFrame) -> float:
        worst = rows.group_by("hadm_id").agg(pl.col("valuenum").max(), pl.first(f"label/post_discharge/{label}"))
        assert len(worst) > 100
        return float(roc_auc_score(worst[f"label/post_discharge/{label}"], worst["valuenum"]))

    at_home = joined.filter(time > now, time < pl.col("back").fill_null(now + pl.duration(days=90)))
    assert area(at_home) > 0.95
    too_late = joined.filter(time.is_between("window_start", now), pl.col("storetime") > now)
    assert area(too_late) > 0.9
    assert area(joined.filter(time >= pl.col("window_start"), pl.col("storetime") <= now)) < 0.75


def test_something_runs_across_every_prediction_time(many: Path) -> None:
    truth = read_truth(many).filter("cohort/icu_landmark").select(SUBJECT, now="prediction_time/icu_landmark")
    for name in ("icu/inputevents", "icu/procedureevents"):
        rows = timed(table(many, name), "starttime", "endtime", "storetime").join(truth, on=SUBJECT)
        across = rows.filter(pl.col("starttime") < pl.col("now"), pl.col("endtime") > pl.col("now"))
        assert len(across) > 100, name
        assert (across["storetime"] > across["now"]).any()
    ventilated = table(many, "icu/procedureevents").filter(pl.col("itemid") == "225792")
    assert len(ventilated) > 100
