"""What is made of a small MEDS dataset, against values worked out by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts, ExtractError, Extraction, scan
from mmnar_lightning.records import RecordStore, SplitSettings, assign_splits
from mmnar_meds import DEFAULT, Labels, MEDSDataModule, MEDSExtractor, Selection


def extracted(root: Path, log: Counts | None = None, **options: Any) -> Extraction:
    extractor = MEDSExtractor(root, **options)
    tables = {spec.name: scan(root if spec.folder is None else spec.folder, spec) for spec in extractor.tables()}
    return extractor.extract(tables, Counts() if log is None else log)


def elements(made: Extraction, name: str) -> pl.DataFrame:
    found = made.elements[name]
    return found if isinstance(found, pl.DataFrame) else found()


def test_samples_are_the_union_of_all_label_rows_of_subjects_with_data(write: Any) -> None:
    made = extracted(write())
    moments = [datetime(2150, 1, 1, 12), datetime(2150, 1, 3), datetime(2150, 5, 2), datetime(2150, 6, 1)]
    assert made.samples["id/subject_id"].to_list() == [1, 1, 2, 3]
    assert made.samples["prediction_time"].to_list() == moments
    assert made.samples["label/death"].to_list() == [False, True, False, False]
    # no row in the task's file: unknown, not negative
    assert made.samples["label/readmission"].to_list() == [True, None, False, None]
    assert made.samples["group/sex"].to_list() == ["female", "female", "male", None]
    assert made.samples["group/age_band"].to_list() == ["45-64", "45-64", None, None]
    assert [task.name for task in made.schema.tasks] == ["death", "readmission"]


def test_counts_say_what_was_left_out(write: Any) -> None:
    log = Counts()
    extracted(write(), log)
    counts = dict(log.items())
    assert counts["labels", "subjects at a prediction time"] == 5
    assert counts["labels", "subjects at a prediction time without a row of data, excluded"] == 1
    assert counts["samples", "kept"] == 4
    assert counts["labs", "known rows without numeric_value, left out"] == 2  # of one event, for two samples
    assert counts["procedures", "events known by then: none, so no such modality"] == 0
    # too few people to name their codes
    assert counts["data", "rows in no modality, other codes"] == 3


def test_age_and_sex_are_always_there_where_the_dataset_knows_them(write: Any) -> None:
    structured = elements(extracted(write()), "structured")
    assert structured["sample"].to_list() == [0, 1, 2]
    days = (datetime(2150, 1, 1, 12) - datetime(2100, 1, 1)).total_seconds() / 86400
    assert structured["age"][0] == pytest.approx(days / 365.25, rel=1e-6)
    assert structured["age"][2] is None
    assert structured["female"].to_list() == [1.0, 1.0, 0.0]


def test_a_vector_holds_statistics_of_what_was_known_by_then(write: Any) -> None:
    made = extracted(write())
    labs = elements(made, "labs")
    assert labs["sample"].to_list() == [0, 1]
    assert labs["hours_before"].to_list() == [2.0, 12.0]
    creatinine = {stat: labs[f"LAB//50912//mg/dL_{stat}"].to_list() for stat in ("last", "min", "max", "mean", "count")}
    assert creatinine["last"] == [1.0, 1.0]
    assert creatinine["min"] == [1.0, 1.0]
    assert creatinine["max"] == [2.5, 2.5]
    assert creatinine["mean"] == pytest.approx([5 / 3, 5 / 3])
    assert creatinine["count"] == [3.0, 3.0]
    assert labs["LAB//50971//mEq/L_last"].to_list() == [None, 4.5]
    # subject 9 has no label and subject 3's value came later: neither makes an item nor an element
    assert [m.name for m in made.schema.modalities] == ["structured", *made.elements][1:]


def test_an_event_at_the_prediction_time_is_known_and_one_out_of_the_window_is_not(write: Any) -> None:
    selection = Selection("series", prefixes=("VITAL//", "LAB//"), window_hours=2)
    made = extracted(write(), events={"monitor": selection})
    rows = elements(made, "monitor").rows()
    assert rows == [
        (0, 2.0, "LAB//50912//mg/dL", 1.0),
        (0, 1.0, "VITAL//HEART_RATE", 80.0),
        (0, 0.0, "VITAL//HEART_RATE", 90.0),
    ]
    assert made.schema.modality("monitor").items == ("LAB//50912//mg/dL", "VITAL//HEART_RATE")
    lagging = Selection("series", prefixes=("VITAL//",), lag_hours=0.5)
    assert elements(extracted(write("again"), events={"monitor": lagging}), "monitor").rows() == [
        (0, 1.0, "VITAL//HEART_RATE", 80.0),
        (1, 37.0, "VITAL//HEART_RATE", 80.0),
        (1, 36.0, "VITAL//HEART_RATE", 90.0),
    ]


def test_codes_stand_once_each_at_their_latest_time_and_static_ones_without(write: Any) -> None:
    made = extracted(write())
    assert elements(made, "diagnoses").rows() == [
        (0, pytest.approx(7348.0), "DIAGNOSIS//ICD//10//I10"),
        (1, pytest.approx(7384.0), "DIAGNOSIS//ICD//10//I10"),
    ]
    assert elements(made, "medications").rows() == [(1, 12.0, "MEDICATION//START//heparin")]
    assert elements(made, "demographics").rows() == [
        (0, None, "GENDER//F"),
        (0, None, "RACE//OTHER"),
        (1, None, "GENDER//F"),
        (1, None, "RACE//OTHER"),
        (2, None, "GENDER//M"),
    ]


def test_text_is_read_only_where_a_modality_asks_for_it(write: Any) -> None:
    root = write()
    assert all("text_value" not in spec.columns for spec in MEDSExtractor(root).tables())
    notes = elements(extracted(root, events={"notes": Selection("text", prefixes=("NOTE//",))}), "notes")
    assert notes.rows() == [(0, 0.0, "Better today."), (1, 36.0, "Better today.")]


def test_birth_and_death_are_no_events_of_any_modality(write: Any) -> None:
    made = extracted(write(), events={"everything": Selection("codes", pattern="."), "s": DEFAULT["demographics"]})
    found = set(elements(made, "everything")["code"]) | set(elements(made, "s")["code"])
    assert "LAB//50971//mEq/L" in found
    assert not [code for code in found if code.startswith("MEDS_")]


def test_a_limit_keeps_the_codes_of_most_people(write: Any, events: Any) -> None:
    events["train/0"].append((2, "2150-05-01 01:00", "LAB//50971//mEq/L", 4.0, None))
    log = Counts()
    labs = Selection("vector", prefixes=("LAB//",), statistics=("last",), most=1)
    made = extracted(write(events=events), log, events={"labs": labs})
    assert made.schema.modality("labs").items == ("LAB//50971//mEq/L_last",)
    assert dict(log.items())["labs", "codes beyond the 1 that most people have, left out"] == 1


def test_the_order_of_rows_and_of_subjects_over_files_changes_nothing(write: Any, events: Any) -> None:
    rows = [row for shard in events.values() for row in shard]
    spread = {"a": rows[::-2], "b/c": rows[-2::-2]}
    log = Counts()
    one, other = extracted(write()), extracted(write("spread", events=spread), log)
    assert other.samples.equals(one.samples)
    assert one.schema == other.schema
    for name in one.elements:
        assert elements(other, name).equals(elements(one, name)), name
    assert dict(log.items())["data", "subjects in several files, which MEDS forbids"] >= 2


def test_the_same_dataset_gives_the_same_bytes_wherever_it_lies(write: Any, tmp_path: Path) -> None:
    stores = [MEDSDataModule(write(name), tmp_path / f"store-{name}").prepare_store() for name in ("a", "b")]
    assert stores[0].name == stores[1].name
    assert stores[0].name.startswith("meds_small_set-tasks-")
    files = [{str(p.relative_to(s)): p.read_bytes() for p in s.rglob("*") if p.is_file()} for s in stores]
    assert files[0] == files[1]


def test_splits_of_the_dataset_are_taken_where_that_is_asked(write: Any, tmp_path: Path) -> None:
    everyone = {"train/0": [(k, "2150-01-01 00:00", "LAB//1", float(k), None) for k in range(400)]}
    rows = [(k, "2150-01-02 00:00", k % 3 == 0) for k in range(400)]
    names = {k: ("held_out" if k % 10 == 0 else "tuning" if k % 10 == 1 else "train") for k in range(400)}
    root = write(events=everyone, labels={"death": rows}, splits=names)
    module = MEDSDataModule(root, tmp_path / "stores", splits=SplitSettings(by="given"))
    given = RecordStore(module.prepare_store()).samples.select("id/subject_id", "split")
    split = assign_splits(RecordStore(module.prepare_store()).samples, module.splits)
    subject = given["id/subject_id"].to_numpy()
    assert (split[subject % 10 == 0] == 3).all()
    assert (split[subject % 10 == 1] == 1).all()
    # calibration is carved out of train by a keyed hash; a fifth of 320 would be out of every plausible range
    rest = split[subject % 10 > 1]
    assert set(rest) == {0, 2}
    assert 20 <= (rest == 2).sum() <= 64


def test_a_subject_without_a_split_is_refused_only_where_splits_are_taken(write: Any, tmp_path: Path) -> None:
    root = write(splits={1: "train", 2: "fold-7"})
    module = MEDSDataModule(root, tmp_path / "stores", splits=SplitSettings(by="given"))
    with pytest.raises(ValueError, match=r"column 'split' of the samples: 2 rows are none of"):
        assign_splits(module.records.samples, module.splits)
    assert len(assign_splits(module.records.samples, SplitSettings())) == 4


def test_tasks_can_be_named_and_described(write: Any) -> None:
    named = {"died": Labels("death", horizon="in hospital"), "back": Labels("readmission.parquet", parent=None)}
    made = extracted(write(), labels=named)
    assert made.schema.task_names == ("died", "back")
    assert made.schema.tasks[0].horizon == "in hospital"
    assert made.samples["label/back"].to_list() == [True, None, False, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"events": {"structured": Selection("codes", prefixes=("A",))}}, "structured"),
        ({"events": {"x": Selection("codes", prefixes=("NOSUCH//",))}}, "belongs to modality 'x'"),
        ({"labels": {"x": Labels("nosuch")}}, "task 'x' has no file nosuch.parquet"),
    ],
)
def test_what_was_asked_for_must_be_there(write: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extracted(write(), **options)


def test_a_dataset_with_no_known_event_is_refused(write: Any) -> None:
    only = {"x": [(1, "2150-01-01 00:00", "OTHER", None, None)]}
    with pytest.raises(ExtractError, match="no event of the subjects with labels belongs to a modality"):
        extracted(write(events=only, labels={"death": [(1, "2150-01-02 00:00", True)]}))
