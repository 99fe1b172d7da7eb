"""Options of the extractor: refused where they mean nothing, and told where a store isn't prospective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.extract import Counts, ExtractError
from mmnar_mimic4 import MIMIC4Extractor
from mmnar_mimic4.cohort import CohortSettings, build_cohort
from mmnar_mimic4.films import film_state
from mmnar_mimic4.years import collection


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cohort": "ward"}, "cohort 'ward'"),
        ({"episodes": "last"}, "episodes 'last'"),
        ({"views": "front"}, "views 'front' is not one of frontal, all"),
        ({"blanks": "x"}, "blanks 'x'"),
        ({"cxr": "embedings"}, "cxr 'embedings'"),
        ({"check_films": "no"}, "check_films 'no'"),
        ({"absent_films": "skip"}, "absent_films 'skip'"),
        ({"release": "3.0"}, "release '3.0'"),
        ({"landmark_hours": float("nan")}, "landmark_hours must be a number of hours"),
        ({"note_grace_hours": float("inf")}, "note_grace_hours must be a number of hours"),
        ({"note_grace_hours": -1.0}, "must not be negative"),
        ({"max_patients": 0}, "max_patients"),
        ({"cohort": "icu_landmark", "prospective": False}, "only post_discharge"),
        ({"cohort": "icu_landmark", "include_billing": True}, "no code has been assigned yet"),
        ({"embeddings": {"labs": "x.parquet"}}, "no modality labs"),
        ({"embeddings": {"cxr": "x.parquet"}}, "cxr needs cxr_root"),
        ({"cohort": "icu_landmark", "embeddings": {"discharge": "x.parquet"}}, "no discharge summaries"),
    ],
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MIMIC4Extractor(**options)


@pytest.mark.parametrize("prospective", [True, False])
@pytest.mark.parametrize("billing", [True, False])
def test_a_store_that_is_not_prospective_says_why(prospective: bool, billing: bool) -> None:
    notice = MIMIC4Extractor(prospective=prospective, include_billing=billing).notice
    if prospective and not billing:
        assert notice is None
        return
    assert notice is not None
    assert ("notes count by the time they are about" in notice) == (not prospective)
    assert ("billing codes are assigned after discharge" in notice) == billing


def test_embeddings_that_fit_nothing_are_an_error(raw: Any, at: Any, tmp_path: Path) -> None:
    pl.DataFrame({"note_id": ["a"], "v": [[1.0]]}).write_parquet(tmp_path / "reports.parquet")
    raw.life(1)
    extractor = MIMIC4Extractor(embeddings={"radiology": tmp_path / "reports.parquet"})
    tables = {spec.name: raw.lazy(spec)[spec.name] for spec in extractor.tables() if not spec.file.startswith("note/")}
    empty = {spec.name: pl.LazyFrame(schema=spec.schema) for spec in extractor.tables()}
    with pytest.raises(ExtractError, match=r"note/radiology: is absent or empty"):
        extractor.extract({**empty, **tables}, Counts())


def test_a_vector_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ExtractError, match=r"nowhere\.parquet: there is no such file"):
        MIMIC4Extractor(embeddings={"radiology": Path("nowhere.parquet")}).options()


def test_a_link_to_nowhere_is_a_film_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "p10" / "p10000001" / "s50000001"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"film")
    alone = film_state(tmp_path)
    (folder / "b.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "files" / "p.txt").write_text("not a folder of people")
    assert film_state(tmp_path) == alone
    (folder / "c.jpg").write_bytes(b"film")
    assert film_state(tmp_path) != alone


def test_a_visit_of_the_emergency_department_without_an_admission_counts_for_films(raw: Any, at: Any) -> None:
    raw.patient().admission(20_000_001, at(0), at(5))
    cohort = build_cohort(raw.cohort_frames(), "post_discharge", CohortSettings(), Counts())
    subject = cohort.samples["subject_id"].item()
    for visit, expected in ((at(-30), "not_ordered"), (at(30), "not_collected")):
        transfers = pl.LazyFrame({"subject_id": [subject], "eventtype": ["ED"], "intime": [visit]})
        samples = MIMIC4Extractor._with_ed_visits(cohort, transfers).samples
        assert samples.select(collection("cxr")).item() == expected
