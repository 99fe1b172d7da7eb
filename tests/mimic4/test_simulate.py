import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmnar_lightning.__main__ import main
from mmnar_lightning.simulation import MARKER
from mmnar_mimic4.simulate import simulate

PERSONS = 600  # two chunks, the second cut
SUBJECT = "subject_id"
_EVENT = "subject_id,hadm_id,stay_id,caregiver_id"
_NOTE = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
_DETAIL = "note_id,subject_id,field_name,field_value,field_ordinal"
# MIMIC-IV 2.2 and 3.1, MIMIC-IV-Note 2.2, MIMIC-CXR-JPG 2.0.0, in full.
HEADERS = {
    "hosp/admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admit_provider_id,"
    "admission_location,discharge_location,insurance,language,marital_status,race,edregtime,edouttime,"
    "hospital_expire_flag",
    "hosp/d_hcpcs": "code,category,long_description,short_description",
    "hosp/d_icd_diagnoses": "icd_code,icd_version,long_title",
    "hosp/d_icd_procedures": "icd_code,icd_version,long_title",
    "hosp/d_labitems": "itemid,label,fluid,category",
    "hosp/diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version",
    "hosp/drgcodes": "subject_id,hadm_id,drg_type,drg_code,description,drg_severity,drg_mortality",
    "hosp/emar": "subject_id,hadm_id,emar_id,emar_seq,poe_id,pharmacy_id,enter_provider_id,charttime,medication,"
    "event_txt,scheduletime,storetime",
    "hosp/emar_detail": "subject_id,emar_id,emar_seq,parent_field_ordinal,administration_type,pharmacy_id,barcode_type,"
    "reason_for_no_barcode,complete_dose_not_given,dose_due,dose_due_unit,dose_given,dose_given_unit,"
    "will_remainder_of_dose_be_given,product_amount_given,product_unit,product_code,product_description,"
    "product_description_other,prior_infusion_rate,infusion_rate,infusion_rate_adjustment,"
    "infusion_rate_adjustment_amount,infusion_rate_unit,route,infusion_complete,completion_interval,new_iv_bag_hung,"
    "continued_infusion_in_other_location,restart_interval,side,site,non_formulary_visual_verification",
    "hosp/hcpcsevents": "subject_id,hadm_id,chartdate,hcpcs_cd,seq_num,short_description",
    "hosp/labevents": "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,"
    "valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments",
    "hosp/microbiologyevents": "microevent_id,subject_id,hadm_id,micro_specimen_id,order_provider_id,chartdate,"
    "charttime,spec_itemid,spec_type_desc,test_seq,storedate,storetime,test_itemid,test_name,org_itemid,org_name,"
    "isolate_num,quantity,ab_itemid,ab_name,dilution_text,dilution_comparison,dilution_value,interpretation,comments",
    "hosp/omr": "subject_id,chartdate,seq_num,result_name,result_value",
    "hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "hosp/pharmacy": "subject_id,hadm_id,pharmacy_id,poe_id,starttime,stoptime,medication,proc_type,status,entertime,"
    "verifiedtime,route,frequency,disp_sched,infusion_type,sliding_scale,lockout_interval,basal_rate,one_hr_max,"
    "doses_per_24_hrs,duration,duration_interval,expiration_value,expiration_unit,expirationdate,dispensation,"
    "fill_quantity",
    "hosp/poe": "poe_id,poe_seq,subject_id,hadm_id,ordertime,order_type,order_subtype,transaction_type,"
    "discontinue_of_poe_id,discontinued_by_poe_id,order_provider_id,order_status",
    "hosp/poe_detail": "poe_id,poe_seq,subject_id,field_name,field_value",
    "hosp/prescriptions": "subject_id,hadm_id,pharmacy_id,poe_id,poe_seq,order_provider_id,starttime,stoptime,"
    "drug_type,drug,formulary_drug_cd,gsn,ndc,prod_strength,form_rx,dose_val_rx,dose_unit_rx,form_val_disp,"
    "form_unit_disp,doses_per_24_hrs,route",
    "hosp/procedures_icd": "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version",
    "hosp/provider": "provider_id",
    "hosp/services": "subject_id,hadm_id,transfertime,prev_service,curr_service",
    "hosp/transfers": "subject_id,hadm_id,transfer_id,eventtype,careunit,intime,outtime",
    "icu/caregiver": "caregiver_id",
    "icu/chartevents": f"{_EVENT},charttime,storetime,itemid,value,valuenum,valueuom,warning",
    "icu/d_items": "itemid,label,abbreviation,linksto,category,unitname,param_type,lownormalvalue,highnormalvalue",
    "icu/datetimeevents": f"{_EVENT},charttime,storetime,itemid,value,valueuom,warning",
    "icu/icustays": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "icu/ingredientevents": f"{_EVENT},starttime,endtime,storetime,itemid,amount,amountuom,rate,rateuom,orderid,"
    "linkorderid,statusdescription,originalamount,originalrate",
    "icu/inputevents": f"{_EVENT},starttime,endtime,storetime,itemid,amount,amountuom,rate,rateuom,orderid,linkorderid,"
    "ordercategoryname,secondaryordercategoryname,ordercomponenttypedescription,ordercategorydescription,"
    "patientweight,totalamount,totalamountuom,isopenbag,continueinnextdept,statusdescription,originalamount,"
    "originalrate",
    "icu/outputevents": f"{_EVENT},charttime,storetime,itemid,value,valueuom",
    "icu/procedureevents": f"{_EVENT},starttime,endtime,storetime,itemid,value,valueuom,location,locationcategory,"
    "orderid,linkorderid,ordercategoryname,ordercategorydescription,patientweight,isopenbag,continueinnextdept,"
    "statusdescription,ORIGINALAMOUNT,ORIGINALRATE",
    "note/discharge": _NOTE,
    "note/radiology": _NOTE,
    "note/discharge_detail": _DETAIL,
    "note/radiology_detail": _DETAIL,
    "cxr/mimic-cxr-2.0.0-metadata": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,"
    "Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning",
    "cxr/mimic-cxr-2.0.0-split": "dicom_id,study_id,subject_id,split",
    "cxr/mimic-cxr-2.0.0-chexpert": "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,"
    "Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,"
    "Pneumothorax,Support Devices",
}
KEYS = {"hosp/admissions": "hadm_id", "hosp/labevents": "labevent_id", "icu/icustays": "stay_id",
        "hosp/transfers": "transfer_id", "hosp/microbiologyevents": "microevent_id", "note/radiology": "note_id",
        "note/discharge": "note_id", "hosp/patients": SUBJECT, "cxr/mimic-cxr-2.0.0-metadata": "dicom_id",
        "hosp/poe": "poe_id", "hosp/emar": "emar_id"}  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / f"{name}.csv.gz", infer_schema=False)


def read_truth(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "truth" / "*.parquet").with_columns(pl.col(SUBJECT, "hadm_id").cast(pl.String))


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "raw"
    simulate(folder, PERSONS, seed=3, film_size=32, progress=False)
    return folder


@pytest.mark.shared_data
def test_headers_are_those_of_the_real_tables(demo_root: Path) -> None:
    found = {f"{p.parent.name}/{p.name.removesuffix('.csv.gz')}": p for p in demo_root.rglob("*.csv.gz")}
    assert set(found) == {name for name in HEADERS if name.startswith(("hosp/", "icu/"))}
    for name, path in found.items():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            assert ",".join(next(csv.reader(file))) == HEADERS[name], name


def test_every_table_is_there_with_its_header_and_plain_csv_reads_it(extract: Path) -> None:
    rows = json.loads((extract / MARKER).read_text())["rows"]
    found = {str(p.relative_to(extract)).removesuffix(".csv.gz") for p in extract.rglob("*.csv.gz")}
    assert found == set(HEADERS) == set(rows)
    for name, header in HEADERS.items():
        with gzip.open(extract / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            assert ",".join(next(reader)) == header
            lengths = [len(row) for row in reader]
        assert set(lengths) == {header.count(",") + 1}, name
        assert len(lengths) == rows[name] > 0, name


def test_ids_look_like_the_real_ones_and_point_to_each_other(extract: Path) -> None:
    people, admissions, stays = (table(extract, n) for n in ("hosp/patients", "hosp/admissions", "icu/icustays"))
    assert len(people) == PERSONS
    assert people[SUBJECT].str.contains(r"^1\d{7}$").all()
    assert admissions["hadm_id"].str.contains(r"^2\d{7}$").all()
    assert stays["stay_id"].str.contains(r"^3\d{7}$").all()
    for name, header in HEADERS.items():
        columns = header.split(",")
        frame = table(extract, name)
        if name in KEYS:
            assert frame[KEYS[name]].is_unique().all(), name
            assert frame[KEYS[name]].null_count() == 0, name
        for column, known in ((SUBJECT, people), ("hadm_id", admissions), ("stay_id", stays)):
            if column in columns:
                assert set(frame[column].drop_nulls()) <= set(known[column]), (name, column)
    transfers = table(extract, "hosp/transfers")
    beds = stays.join(transfers, left_on="stay_id", right_on="transfer_id", how="inner")
    assert (beds["intime"] == beds["intime_right"]).all()
    assert len(beds) == len(stays)
    for events, dictionary in (("hosp/labevents", "hosp/d_labitems"), ("icu/chartevents", "icu/d_items"),
                               ("icu/inputevents", "icu/d_items"), ("icu/procedureevents", "icu/d_items")):  # fmt: skip
        assert set(table(extract, events)["itemid"]) <= set(table(extract, dictionary)["itemid"]), events


@pytest.mark.parametrize("films", ["jpg", "embeddings", "none"])
def test_same_arguments_give_the_same_bytes(tmp_path: Path, films: str) -> None:
    options = {"films": films, "film_size": 32, "progress": False}
    simulate(tmp_path / "one", 60, 7, **options)  # type: ignore[arg-type]
    simulate(tmp_path / "other", 60, 7, **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "one") == hashes(tmp_path / "other")
    assert any(name.startswith("cxr/files/") for name in hashes(tmp_path / "one")) == (films != "none")
    simulate(tmp_path / "seed", 60, 8, **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "seed")["hosp/labevents.csv.gz"] != hashes(tmp_path / "one")["hosp/labevents.csv.gz"]


def test_the_first_patients_are_the_same_however_many_follow(extract: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "few", 520, seed=3, film_size=32, progress=False)  # ends inside the second chunk
    few, many = read_truth(tmp_path / "few"), read_truth(extract)
    assert few[SUBJECT].n_unique() == 520
    assert few.equals(many.head(len(few)))
    kept = set(few[SUBJECT])
    for name, header in HEADERS.items():
        if SUBJECT in header.split(","):
            small, large = table(tmp_path / "few", name), table(extract, name)
            assert small.equals(large.filter(pl.col(SUBJECT).is_in(kept))), name
    small_files, large_files = hashes(tmp_path / "few" / "cxr" / "files"), hashes(extract / "cxr" / "files")
    assert len(small_files) < len(large_files)
    assert small_files.items() <= large_files.items()


def test_another_extract_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    simulate(folder, 5, films="none", progress=False)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    simulate(folder, 5, films="none", progress=False)
    options: dict[str, Any] = {"patients": 6, "seed": 1, "mechanism": "mcar", "strength": 2.0, "release": "3.1"}
    for name, value in (options | {"films": "jpg", "film_size": 32}).items():
        with pytest.raises(FileExistsError, match=f"{name} .*, not {value!r}"):
            simulate(folder, **{"patients": 5, "films": "none", "progress": False, name: value})
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "at least 1"),
        ({"patients": 2_000_000}, "at most 1111111"),
        ({"mechanism": "sometimes"}, "not one of mcar, mar, mnar"),
        ({"strength": -1.0}, "not negative"),
        ({"seed": -1}, "seed at least 0"),
        ({"release": "3.0"}, "release '3.0' is not one of 2.2, 3.1"),
        ({"films": "png"}, "films 'png' is not one of jpg, embeddings, none"),
        ({"film_size": 4}, "film_size is 4; it must be at least 32"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path / "raw", **{"progress": False, **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_time_and_size_grow_no_faster_than_patients(tmp_path: Path) -> None:
    """Rows a patient, and the largest frame held, stay the same: chunks have a fixed size."""
    held: list[int] = []
    original = pl.DataFrame.write_csv

    def recording(frame: pl.DataFrame, *arguments: object, **options: object) -> object:
        held.append(len(frame))
        return original(frame, *arguments, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_csv", recording)
        simulate(tmp_path / "small", 512, films="none", progress=False)
        largest = max(held)
        simulate(tmp_path / "large", 2048, films="none", progress=False)
    assert max(held) < 1.2 * largest
    small, large = (json.loads((tmp_path / n / MARKER).read_text())["rows"] for n in ("small", "large"))
    names = ("hosp/labevents", "hosp/patients", "note/radiology")
    assert np.array([large[t] / small[t] for t in names]) == pytest.approx(4, rel=0.15)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "mimic4", str(tmp_path / "raw"), "--patients", "8", "--seed", "3", "--release", "3.1"]
    assert main([*words, "--progress", "false", "--films", "none"]) == 0
    found = json.loads((tmp_path / "raw" / MARKER).read_text())
    assert (found["patients"], found["release"], found["films"]) == (8, "3.1", "none")
    assert capsys.readouterr().out.strip() == str(tmp_path / "raw")
    for bad, message in (
        (["simulate", "mimic4", str(tmp_path / "x"), "--mechanism", "never"], "mechanism"),
        (["simulate", "mimic4", str(tmp_path / "x"), "--release", "1.0"], "release"),
        (["simulate", "mimic4", str(tmp_path / "x"), "--patients", "0"], "at least 1"),
        ([*words[:3], "--patients", "9"], "patients 8, not 9"),
    ):
        assert main(bad) != 0
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
