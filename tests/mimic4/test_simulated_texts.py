from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from mmnar_mimic4.simulated import texts

N, TRAIN = 4000, 3000
REPORT = ("EXAMINATION:", "INDICATION:", "TECHNIQUE:", "COMPARISON:", "FINDINGS:", "IMPRESSION:")
SUMMARY = (
    "Name:  ___ ",
    "Unit No:   ___",
    "Admission Date:",
    "Date of Birth:",
    "Service:",
    "Allergies:",
    "Chief Complaint:",
    "History of Present Illness:",
    "Past Medical History:",
    "Pertinent Results:",
    "Brief Hospital Course:",
    "Medications on Admission:",
    "Discharge Medications:",
    "Discharge Disposition:",
    "Discharge Condition:",
    "Discharge Instructions:",
)
OUTCOME = re.compile(
    r"\b(die[ds]?|dying|dead|death|deceased|expired?|mortality|hospice|passed away|surviv\w*|readmi\w*|rehospital\w*"
    r"|bounce.?back|icu|intensive care)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def values() -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal((N, texts.WIDTH))


@pytest.fixture(scope="module")
def facts() -> pl.DataFrame:
    rng = np.random.default_rng(6)
    return pl.DataFrame(
        {
            "age": rng.integers(18, 99, N),
            "sex": rng.choice(["F", "M"], N),
            "service": rng.choice(["MED", "CMED", "NSURG", "XYZ"], N),
        }
    )


@pytest.fixture(scope="module")
def reports(values: NDArray[np.float64]) -> list[str]:
    return texts.radiology(values, np.random.default_rng(7))


@pytest.fixture(scope="module")
def summaries(values: NDArray[np.float64], facts: pl.DataFrame) -> list[str]:
    return texts.discharge(values, facts, np.random.default_rng(7))


def recovered(written: list[str], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """R² of each value from a ridge over the bag of words, on texts it was not fitted to."""
    words = TfidfVectorizer(min_df=3)
    fitted = Ridge(1.0).fit(words.fit_transform(written[:TRAIN]), values[:TRAIN])
    predicted = fitted.predict(words.transform(written[TRAIN:]))
    return np.asarray(r2_score(values[TRAIN:], predicted, multioutput="raw_values"))


def in_order(text: str, headings: tuple[str, ...]) -> bool:
    places = [text.find(heading) for heading in headings]
    return places[0] >= 0 and places == sorted(places) and all(text.count(h) == 1 for h in headings)


def test_reports_have_their_sections_and_length(reports: list[str]) -> None:
    lengths = [len(text.split()) for text in reports]
    assert 60 <= min(lengths) < 95
    assert 145 < max(lengths) <= 200
    assert all(in_order(text, REPORT) for text in reports)
    assert all("___" in text for text in reports)
    assert 0.1 < np.mean(['"' in text for text in reports]) < 0.9
    assert np.mean(["," in text for text in reports]) > 0.5
    assert len(set(reports)) == N


def test_summaries_have_their_sections_and_length(summaries: list[str]) -> None:
    lengths = np.array([len(text.split()) for text in summaries])
    assert 300 <= lengths.min() < 380
    assert 1200 < lengths.max() <= 1500
    assert 600 < np.median(lengths) < 760
    # log-normal: skewed as they are, not as logarithms
    assert 0.3 < np.log(lengths).std() < 0.45
    assert np.percentile(lengths, 95) - np.median(lengths) > 1.5 * (np.median(lengths) - np.percentile(lengths, 5))
    assert all(in_order(text, SUMMARY) for text in summaries)
    assert all('"' in "".join(summaries[k : k + 20]) for k in range(0, N, 20))
    assert len(set(summaries)) == N


def test_values_are_recovered_from_words(reports: list[str], summaries: list[str], values: NDArray[np.float64]) -> None:
    assert recovered(reports, values).min() > 0.9
    assert recovered(summaries, values).min() > 0.85


def test_shuffled_texts_tell_nothing(reports: list[str], summaries: list[str], values: NDArray[np.float64]) -> None:
    order = np.random.default_rng(8).permutation(N)
    for written in (reports, summaries):
        # predictions that follow nothing vary by some 0.05; over 1000 rows R² then has a standard deviation of 0.015
        assert recovered([written[k] for k in order], values).max() < 0.05


def test_the_beginning_of_a_summary_tells_little(summaries: list[str], values: NDArray[np.float64]) -> None:
    beginnings = [" ".join(text.split()[:128]) for text in summaries]
    known = recovered(beginnings, values)
    assert known.max() < 0.65
    assert known.mean() < 0.25
    assert np.sort(known)[:3].max() < 0.05  # all but the one in the history of the present illness


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        ("History of Present Illness:", "Past Medical History:", ["fluid"]),
        ("ON LEAVING:", "Pertinent Results:", ["fluid", "breathing"]),
        ("Pertinent Results:", "Brief Hospital Course:", ["kidneys"]),
        ("Brief Hospital Course:", "STATUS ON LEAVING:", list(texts.DISCHARGE)),
        ("STATUS ON LEAVING:", "TRANSITIONAL ISSUES:", list(texts.DISCHARGE)),
        ("TRANSITIONAL ISSUES:", "Medications on Admission:", ["kidneys"]),
        ("Discharge Disposition:", "Discharge Instructions:", ["strength"]),
        ("Discharge Instructions:", "Followup Instructions:", ["breathing", "strength"]),
    ],
)
def test_each_section_tells_its_findings(
    summaries: list[str], values: NDArray[np.float64], start: str, end: str, told: list[str]
) -> None:
    known = recovered([text.partition(start)[2].partition(end)[0] for text in summaries], values)
    for finding, r2 in zip(texts.DISCHARGE, known, strict=True):
        assert r2 > 0.65 if finding in told else r2 < 0.05, finding


@pytest.mark.parametrize("which", range(texts.WIDTH))
def test_each_section_is_graded(which: int) -> None:
    # the same text but for one value: both sections change, and in every grade
    values = np.zeros((texts.GRADES, texts.WIDTH))
    values[:, which] = (np.arange(texts.GRADES) - texts.GRADES // 2) * texts.STEP
    said = [texts.radiology(row[None], np.random.default_rng(1))[0] for row in values]
    assert texts.GRADES >= 9
    assert len({text.partition("IMPRESSION")[0] for text in said}) == texts.GRADES
    assert len({text.partition("IMPRESSION")[2] for text in said}) == texts.GRADES


def test_grades_rise() -> None:
    grades = texts.grades(np.linspace(-4.0, 4.0, 2001))
    assert grades.min() == 0
    assert grades.max() == texts.GRADES - 1
    assert set(np.diff(grades)) == {0, 1}
    assert texts.grades(np.zeros(1))[0] == texts.GRADES // 2


def test_phrases_are_of_one_grade_each() -> None:
    with (Path(texts.__file__).parent / "phrases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["phrase"] for row in rows}) == len(rows)
    for text, findings in (("radiology", texts.RADIOLOGY), ("discharge", texts.DISCHARGE)):
        for finding in findings:
            grades = [int(row["grade"]) for row in rows if (row["text"], row["finding"]) == (text, finding)]
            assert sorted(grades) == sorted([*range(1, texts.GRADES + 1)] * 3)


def test_no_word_states_the_outcome(reports: list[str], summaries: list[str]) -> None:
    assert OUTCOME.search("the patient died") is not None
    assert not [text for text in reports + summaries if OUTCOME.search(text)]


def test_no_gap_is_left_open(reports: list[str], summaries: list[str]) -> None:
    assert not [text for text in reports + summaries if "{" in text or "}" in text]


def test_facts_appear(summaries: list[str], facts: pl.DataFrame) -> None:
    names = {"MED": "MEDICINE", "CMED": "CARDIOLOGY", "NSURG": "NEUROSURGERY", "XYZ": "XYZ"}
    told = 0
    for text, (age, sex, service) in zip(summaries, facts.iter_rows(), strict=True):
        assert f"Sex:   {sex}\n" in text
        assert f"Service: {names[service]}\n" in text
        assert ("Dear Ms. ___" if sex == "F" else "Dear Mr. ___") in text
        shown = re.search(r" is a (\S+) year old (wo)?man ", text)
        assert shown is not None
        assert shown[1] == "___" or (shown[1] == str(age) and age <= 89)
        assert (shown[2] == "wo") == (sex == "F")
        told += shown[1] != "___"
    assert 0.25 < told / N < 0.4


def test_unknown_facts_are_blanks() -> None:
    schema = {"age": pl.Int64, "sex": pl.String, "service": pl.String}
    facts = pl.DataFrame({"age": [None], "sex": [None], "service": [None]}, schema=schema)
    (text,) = texts.discharge(np.zeros((1, 4)), facts, np.random.default_rng(0))
    assert "Sex:   ___\n" in text
    assert "Service: ___\n" in text
    assert "___ year old patient" in text
    assert "None\n" not in text.partition("Major Surgical")[0]


def test_csv_round_trip(tmp_path: Path, reports: list[str], summaries: list[str]) -> None:
    written = reports[:200] + summaries[:200]
    frame = pl.DataFrame({"row": np.arange(len(written)), "text": written})
    path = tmp_path / "notes.csv.gz"
    path.write_bytes(gzip.compress(frame.write_csv().encode()))
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == written
    assert pl.read_csv(path)["text"].to_list() == written


def test_the_same_generator_writes_the_same(
    values: NDArray[np.float64], facts: pl.DataFrame, reports: list[str], summaries: list[str]
) -> None:
    assert texts.radiology(values, np.random.default_rng(7)) == reports
    assert texts.discharge(values, facts, np.random.default_rng(7)) == summaries
    other = texts.radiology(values[:50], np.random.default_rng(8))
    assert not set(other) & set(reports)


def test_no_texts_of_no_values(facts: pl.DataFrame) -> None:
    nothing = np.empty((0, texts.WIDTH))
    assert texts.radiology(nothing, np.random.default_rng(0)) == []
    assert texts.discharge(nothing, facts.head(0), np.random.default_rng(0)) == []


def test_wrong_input_is_refused(facts: pl.DataFrame) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"values of shape \(5, 3\)"):
        texts.radiology(np.zeros((5, 3)), rng)
    with pytest.raises(ValueError, match="finite"):
        texts.radiology(np.full((5, 4), np.nan), rng)
    with pytest.raises(ValueError, match="4000 rows for 5 values"):
        texts.discharge(np.zeros((5, 4)), facts, rng)
    with pytest.raises(ValueError, match=r"missing columns \['sex'\]"):
        texts.discharge(np.zeros((5, 4)), facts.head(5).drop("sex"), rng)
