"""What each modality makes of a few raw rows, worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_eicu import EICUExtractor, codes
from mmnar_eicu.modalities import MODALITIES, describe
from mmnar_lightning.extract import ExtractError

LAB = {"labname": "creatinine", "labmeasurenamesystem": "mg/dL"}
GCS = "notes/Progress Notes/Physical Exam/Physical Exam/Neurologic/GCS"


@pytest.fixture
def made(tmp_path: Path, opened: Any, extracted: Any) -> Callable[..., Any]:
    """`made(extract, **options)` writes an extract and runs it."""

    def make(extract: Any, **options: Any) -> Any:
        extractor = EICUExtractor(include_respiratory=True, include_micro=True, **options)
        return extracted(extractor, opened(extract.write(tmp_path), extractor))

    return make


def lab(extract: Any, stay: int, at: int, value: float | None, revised: int | None = None, **columns: Any) -> None:
    revised = at if revised is None else revised
    extract.add("lab", stay, labresultoffset=at, labresultrevisedoffset=revised, labresult=value, **{**LAB, **columns})


def test_statistics_of_a_lab_value(extract: Any, made: Any) -> None:
    extract.stay()
    for at, value in ((-60, 1.0), (100, 4.0), (1000, 2.5)):
        lab(extract, 1, at, value)
    lab(extract, 1, 1000, 2.5)  # the same row again but for its id
    lab(extract, 1, -1561, 9.0)  # over 24 hours before hospital admission
    lab(extract, 1, 1441, 9.0)  # after the prediction time
    lab(extract, 1, 1200, 9.0, revised=1441)  # drawn before it, revised after it
    lab(extract, 1, 1300, 900.0)  # not plausible
    lab(extract, 1, 1300, None)
    found = made(extract)
    got = {stat: found.value("labs", f"creatinine_{stat}") for stat in ("last", "min", "max", "mean", "count", "delta")}
    assert got == {"last": 2.5, "min": 1.0, "max": 4.0, "mean": 2.5, "count": 3.0, "delta": 1.5}
    assert found.value("labs", "hours_before") == pytest.approx((1440 - 1000) / 60)
    assert found.value("labs", "sodium_last") is None
    assert found.counts["lab", "implausible values of creatinine, nulled"] == 1
    assert found.counts["lab", "not yet known at the prediction time"] == 2
    assert found.counts["lab", "about a time over 24 hours before hospital admission"] == 1


@pytest.mark.parametrize(("at", "inside"), [(-1560, True), (-1561, False), (-121, True)])
def test_the_window_opens_24_hours_before_hospital_admission(extract: Any, made: Any, at: int, inside: bool) -> None:
    extract.stay()  # two hours after hospital admission, which is minute -120: a day before it is minute -1560
    lab(extract, 1, at, 1.5)
    extract.add("treatment", 1, treatmentoffset=at, treatmentstring="surgery")
    extract.add("physicalExam", 1, physicalexamoffset=at, physicalexampath=f"{GCS}/9")
    found = made(extract)
    assert (found.value("labs", "creatinine_last") == 1.5) == inside
    assert ("surgery" in found.codes("treatment")) == inside
    assert ("gcs:9-12" in found.codes("notes")) == inside


@pytest.mark.parametrize(("at", "revised", "known"), [(1440, 1440, True), (1380, "", True), (1381, "", False)])
def test_a_result_without_entry_time_is_known_an_hour_later(
    extract: Any, made: Any, at: int, revised: Any, known: bool
) -> None:
    extract.stay().add("lab", 1, labresultoffset=at, labresultrevisedoffset=revised, labresult=1.5, **LAB)
    assert (made(extract).value("labs", "creatinine_last") is not None) == known


def test_labs_of_an_extract_floored_to_the_hour_are_held_back(extract: Any, made: Any) -> None:
    extract.stay()
    lab(extract, 1, 1380, 1.0)
    lab(extract, 1, 1440, 2.0)
    held = made(extract, lab_delay=59)
    assert held.value("labs", "creatinine_last") == 1.0
    assert held.counts["lab", "held back beyond the prediction time by lab_delay"] == 1
    assert made(extract).value("labs", "creatinine_last") == 2.0


@pytest.mark.parametrize(("revised", "known"), [(1380, True), (1381, True), (1382, False), (1440, False)])
def test_a_floored_revision_is_held_back_too(extract: Any, made: Any, revised: int, known: bool) -> None:
    extract.stay()
    lab(extract, 1, 600, 1.5, revised=revised)
    assert (made(extract, lab_delay=59).value("labs", "creatinine_last") is not None) == known


def test_a_lab_unit_that_nobody_knows_is_an_error(extract: Any, made: Any) -> None:
    extract.stay()
    lab(extract, 1, 100, 88.0, labmeasurenamesystem="furlong")
    with pytest.raises(ExtractError, match="labmeasurenamesystem"):
        made(extract)


def test_data_of_all_unit_stays_of_an_episode_count_on_its_clock(extract: Any, made: Any) -> None:
    extract.stay(1, unitdischargeoffset=600)
    extract.stay(2, hospitaladmitoffset=-120 - 630, unitdischargeoffset=4000, unitstaytype="transfer")
    lab(extract, 1, 500, 3.0)
    lab(extract, 2, -200, 2.0)  # minute 430 of the episode
    lab(extract, 2, 810, 1.0)  # minute 1440
    lab(extract, 2, 811, 9.0)
    found = made(extract)
    assert found.value("labs", "creatinine_last") == 1.0
    assert found.value("labs", "creatinine_delta") == 1.0 - 2.0
    assert found.value("labs", "creatinine_count") == 3.0
    assert found.value("structured", "unit_stays") == 2.0


def test_rows_of_a_unit_stay_that_begins_later_do_not_exist_yet(extract: Any, made: Any) -> None:
    extract.stay(1, unitdischargeoffset=1500)
    extract.stay(2, hospitaladmitoffset=-120 - 1520, unitdischargeoffset=4000)
    lab(extract, 2, -1000, 3.0)  # minute 520 of the episode, filed under a unit not yet entered
    assert made(extract).value("labs", "creatinine_last") is None


def test_vitals_are_converted_and_impossible_ones_are_no_values(extract: Any, made: Any) -> None:
    extract.stay()
    for at, columns in (
        (0, {"temperature": 98.6, "heartrate": 80}),
        (60, {"temperature": 37.5, "heartrate": 0}),
        (1380, {"heartrate": 100}),
        (1381, {"heartrate": 200}),  # known an hour later
    ):
        extract.add("vitalPeriodic", 1, observationoffset=at, **columns)
    extract.add("vitalAperiodic", 1, observationoffset=30, noninvasivesystolic=0, noninvasivediastolic=70)
    found = made(extract)
    assert found.value("vitals", "temperature_min") == pytest.approx(37.0)
    assert found.value("vitals", "temperature_max") == 37.5
    assert found.value("vitals", "heart_rate_last") == 100.0
    assert found.value("vitals", "heart_rate_count") == 2.0
    assert found.value("vitals", "dbp_last") == 70.0
    assert found.value("vitals", "sbp_last") is None
    assert found.counts["vitals", "implausible values of sbp, nulled"] == 1


def test_a_modality_without_a_value_has_no_row(extract: Any, made: Any) -> None:
    extract.stay()
    extract.add("vitalAperiodic", 1, observationoffset=30, noninvasivesystolic=0)
    extract.add("vitalPeriodic", 1, observationoffset=30)
    lab(extract, 1, 100, None)
    extract.add("medication", 1, drugorderoffset=5)
    found = made(extract)
    assert found.elements.keys() == {*MODALITIES, "respiratory", "micro"}
    assert {name: frame.height for name, frame in found.elements.items() if frame.height} == {"structured": 1}
    for modality in describe(respiratory=True, micro=True):
        columns = ("sample", "hours_before", *(modality.items if modality.kind == "vector" else ["code"]))
        assert found.elements[modality.name].columns == list(columns)
    assert found.counts["medication", "rows without a code, not used"] == 1


def test_drugs_by_ingredient_number_or_name(extract: Any, made: Any) -> None:
    extract.stay()
    order = {"drugorderoffset": 100, "drugstartoffset": 5000}  # ordered is ordered, whenever it starts
    extract.add("medication", 1, drughiclseqno=2812, drugname="WARFARIN SODIUM 5 MG PO TABS", **order)
    extract.add("medication", 1, drugname="BISACODYL 10 MG RE SUPP", drugordercancelled="Yes", **order)
    extract.add("medication", 1, drughiclseqno=1, drugorderoffset=1381, drugstartoffset=0)  # ordered too late
    extract.add("admissionDrug", 1, drugoffset=-99999, drugenteredoffset=1440, drugname="LASIX", drughiclseqno="")
    extract.add("admissionDrug", 1, drugoffset=10, drugenteredoffset=1441, drugname="NOVOLOG", drughiclseqno=20769)
    found = made(extract)
    assert found.codes("medication") == {"hicl:2812", "name:bisacodyl"}
    assert found.codes("home_drugs") == {"name:lasix"}
    assert found.elements["home_drugs"]["hours_before"].to_list() == [0.0]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("5 ML VIAL : DILTIAZEM HCL 25 MG/5ML IV SOLN", "diltiazem hcl"),
        ("473 ML  -  CHLORHEXIDINE GLUCONATE 0.12 % MT SOLN", "chlorhexidine gluconate"),
        ("POTASSIUM CHLORIDE 20 MEQ PO PACK", "potassium chloride"),
        ("INSULIN LISPRO (HUMAN) 100 UNIT/ML SC SOLN", "insulin lispro"),
        ("fentaNYL CITRATE INJ", "fentanyl citrate inj"),
        ("  ", None),
        ("0.9 %", None),
        (None, None),
    ],
)
def test_drug_names(raw: str | None, name: str | None) -> None:
    frame = pl.DataFrame({"drugname": pl.Series([raw], dtype=pl.String)})
    assert frame.select(codes.drug_name()).item() == name


def test_infusions(extract: Any, made: Any) -> None:
    extract.stay()
    for at, drug, rate in (
        (300, "Norepinephrine (mcg/min)", "8"),
        (1300, "Propofol (ml/hr)", "20"),
        (1200, "EPINEPHrine(Adrenalin)STD 4 mg (mcg/min)", ""),
        (400, "Dopamine (mcg/kg/min)", "0"),  # stopped
        (1381, "Vasopressin (units/min)", "0.04"),  # not yet known
        (200, "Potion of strength (ml/hr)", "OFF"),
    ):
        extract.add("infusionDrug", 1, infusionoffset=at, drugname=drug, drugrate=rate)
    found = made(extract)
    assert found.codes("infusion") == {
        "drug:norepinephrine",
        "class:vasopressor",
        "drug:propofol",
        "class:sedative",
        "running:propofol",
        "running:sedative",
        "drug:epinephrine",
        "running:epinephrine",
        "running:vasopressor",
        "name:potion of strength",
    }
    assert found.counts["infusion", "rows without a code, not used"] == 1


def test_trees_give_a_path_and_its_beginnings(extract: Any, made: Any) -> None:
    extract.stay()
    extract.add("treatment", 1, treatmentoffset=50, treatmentstring="pulmonary|ventilation|mechanical")
    extract.add("treatment", 1, treatmentoffset=1380, treatmentstring="pulmonary|ventilation")
    extract.add("diagnosis", 1, diagnosisoffset=50, diagnosisstring="cardiovascular|shock / hypotension|sepsis")
    extract.add("diagnosis", 1, diagnosisoffset=1381, diagnosisstring="renal")
    extract.add("admissionDx", 1, admitdxenteredoffset=1440, admitdxpath="admission diagnosis|Elective|Yes")
    past = "notes/Progress Notes/Past History/Organ Systems/Pulmonary/Asthma/asthma"
    # written an hour before the landmark about a time long ago
    extract.add("pastHistory", 1, pasthistoryoffset=-42622, pasthistoryenteredoffset=1380, pasthistorypath=past)
    extract.add("pastHistory", 1, pasthistoryoffset=10, pasthistoryenteredoffset=1441, pasthistorypath="a/b")
    found = made(extract)
    assert found.codes("treatment") == {"pulmonary", "pulmonary|ventilation", "pulmonary|ventilation|mechanical"}
    times = dict(found.elements["treatment"].select("code", "hours_before").rows())
    assert times["pulmonary"] == 1.0
    assert times["pulmonary|ventilation|mechanical"] == pytest.approx(1390 / 60)
    sepsis = "cardiovascular|shock / hypotension|sepsis"
    assert found.codes("diagnosis") == {
        "dx:cardiovascular",
        "dx:cardiovascular|shock / hypotension",
        f"dx:{sepsis}",
        "adm:Elective",
        "adm:Elective|Yes",
        "hx:Pulmonary",
        "hx:Pulmonary|Asthma",
        "hx:Pulmonary|Asthma|asthma",
    }


def test_notes_hold_what_was_picked_and_no_typed_text(extract: Any, made: Any) -> None:
    extract.stay()
    path = "notes/Progress Notes/Social History / Family History/Social History/Ethanol Use/none"
    note = {"notetype": "Admission", "notevalue": "typed value", "notetext": "typed text"}
    extract.add("note", 1, noteoffset=30, noteenteredoffset=50, notepath=path, **note)
    extract.add("note", 1, noteoffset=30, noteenteredoffset=1441, notepath="late", **note)
    weight = "notes/Progress Notes/Physical Exam/Physical Exam/Constitutional/Weight (kg)/Admission"
    extract.add("physicalExam", 1, physicalexamoffset=30, physicalexampath=weight, physicalexamtext="71.3")
    found = made(extract)
    assert found.codes("notes") == {
        "note:Social History / Family History/Social History/Ethanol Use/none",
        "note_type:Admission",
        "exam:Constitutional/Weight (kg)/Admission",
    }


@pytest.mark.parametrize(
    ("exam", "note_about", "note_entered", "known"),
    [
        (720, None, None, True),  # 12 hours old
        (721, None, None, False),
        (1400, 1400, 1440, True),  # its note is there
        (1400, 1400, 1441, False),  # its note came too late
        (1400, 1399, 1399, False),  # another note
        (600, 600, 1441, True),  # 12 hours old, whatever its note says
    ],
)
def test_an_exam_is_known_with_its_note_or_12_hours_later(
    extract: Any, made: Any, exam: int, note_about: int | None, note_entered: int | None, known: bool
) -> None:
    extract.stay().add("physicalExam", 1, physicalexamoffset=exam, physicalexampath=f"{GCS}/Motor Score/6")
    if note_about is not None:
        extract.add("note", 1, noteoffset=note_about, noteenteredoffset=note_entered, notetype="n", notepath="p")
    assert ("exam:Neurologic/GCS/Motor Score/6" in made(extract).codes("notes")) == known


@pytest.mark.parametrize(
    ("eyes", "verbal", "motor", "band"),
    [(1, 1, 1, "3-5"), (1, 1, 4, "6-8"), (2, 2, 5, "9-12"), (3, 4, 6, "13-14"), (4, 5, 6, "15"), (4, None, 6, None)],
)
def test_coma_scale(extract: Any, made: Any, eyes: int, verbal: int | None, motor: int, band: str | None) -> None:
    extract.stay()
    for part, points in (("Eyes", eyes), ("Verbal", verbal), ("Motor", motor)):
        if points is not None:
            extract.add("physicalExam", 1, physicalexamoffset=60, physicalexampath=f"{GCS}/{part} Score/{points}")
    scores = {code for code in made(extract).codes("notes") if code.startswith("gcs:")}
    assert scores == (set() if band is None else {f"gcs:{band}"})


def test_coma_scale_given_as_its_total(extract: Any, made: Any) -> None:
    extract.stay().add("physicalExam", 1, physicalexamoffset=60, physicalexampath=f"{GCS}/9")
    assert "gcs:9-12" in made(extract).codes("notes")


def test_respiratory_and_micro(extract: Any, made: Any) -> None:
    extract.stay()
    for at, label, value in ((10, "FiO2", "0.4"), (20, "FiO2", "60"), (30, "PEEP", "none"), (1441, "PEEP", "5")):
        extract.add(
            "respiratoryCharting",
            1,
            respchartoffset=at,
            respchartentryoffset=at,
            respchartvaluelabel=label,
            respchartvalue=value,
        )
    extract.add("respiratoryCare", 1, respcarestatusoffset=20, airwaytype="Oral ETT")
    extract.add("respiratoryCare", 1, respcarestatusoffset=1380, airwaytype="No Artificial Airway")
    extract.add("microLab", 1, culturetakenoffset=10, culturesite="Blood", organism="Staphylococcus aureus")
    found = made(extract)
    assert found.value("respiratory", "fio2_min") == pytest.approx(40.0)
    assert found.value("respiratory", "fio2_last") == 60.0
    assert found.value("respiratory", "peep_last") is None
    assert found.value("respiratory", "artificial_airway_last") == 0.0
    assert found.codes("micro") == {"culture:Blood"}


def test_structured(extract: Any, made: Any) -> None:
    stay = {"admissionheight": 200.0, "admissionweight": 80.0, "unitadmitsource": "PACU", "unitadmittime24": "06:59:00"}
    extract.stay(1, age="> 89", ethnicity="", hospitaladmitsource="Moon", **stay)
    extract.stay(2, patienthealthsystemstayid=11, admissionheight=0.3, gender="", hospitalid=99)
    found = made(extract)
    expected = {
        "age": 90.0,
        "bmi": 20.0,
        "hours_in_hospital": 2.0,
        "hours_in_icu": 24.0,
        "sex_female": 1.0,
        "sex_male": 0.0,
        "ethnicity_other": None,
        "source_recovery": 1.0,
        "hospital_source_other": 1.0,
        "unit_medical": 1.0,
        "beds_under_100": 1.0,
        "teaching_yes": 1.0,
        "region_west": 1.0,
        "admission_hour_sin": 1.0,
        "earlier_icu_episodes": 0.0,
    }
    assert {item: found.value("structured", item) for item in expected} == pytest.approx(expected)
    unknown = ("height", "bmi", "sex_female", "beds_under_100", "region_west", "admission_hour_cos")
    assert [found.value("structured", item, 1) for item in unknown] == [None] * len(unknown)
    assert found.samples["group/age_band"].to_list() == ["85+", "45-64"]
    assert found.samples["group/region"].to_list() == ["west", None]
    assert found.samples["site"].to_list() == ["7", "99"]


@pytest.mark.parametrize(
    ("items", "eol", "limit"),
    [
        ([], None, "not recorded"),
        ([(10, "Full therapy")], None, "full"),
        ([(10, "Do not resuscitate"), (500, "Full therapy")], None, "limited"),
        ([(10, "No CPR"), (1380, "Comfort measures only")], None, "comfort"),
        ([(10, "Full therapy"), (1381, "Comfort measures only")], None, "full"),
        ([], 1440, "limited"),
        ([], 1441, "not recorded"),
    ],
)
def test_care_limits_before_the_prediction_time(
    extract: Any, made: Any, items: list[tuple[int, str]], eol: int | None, limit: str
) -> None:
    extract.stay()
    for at, item in items:
        extract.add("carePlanGeneral", 1, cplitemoffset=at, cplgroup="Care Limitation", cplitemvalue=item)
    if eol is not None:
        extract.add("carePlanEOL", 1, cpleolsaveoffset=eol, cpleoldiscussionoffset=0)
    assert made(extract).samples["group/care_limits"].to_list() == [limit]
    left = made(extract, exclude_care_limits=True)
    assert left.samples.height == (limit in ("full", "not recorded"))


@pytest.mark.parametrize(
    "wrong", [{"cohort": "everyone"}, {"landmark_hours": 0}, {"landmark_hours": 168}, {"lab_delay": -1}]
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EICUExtractor(**wrong)
