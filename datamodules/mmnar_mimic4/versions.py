"""Which release of MIMIC-IV an extract is, and why others are refused.

2.2 and 3.1 have the same columns and the same itemids; what tells them apart is what is in the columns. Others are
recognised so that their error says what to do:

* 1.0 keeps patients and admissions in ``core/`` and calls race *ethnicity*;
* 2.0 and 2.1 have no ``admit_provider_id``, and hold out other subjects;
* 3.0 gave some laboratory tests new itemids by mistake, which 3.1 took back: read with the itemids of 2.2, its results
  would be those of other tests. It is recognised by two itemids of ``hosp/d_labitems``.

Sources: change logs of MIMIC-IV on PhysioNet and mimic.mit.edu; https://github.com/MIT-LCP/mimic-code/issues/1772 (the
absolute lymphocyte count is 53132 in one of 2.2 and 3.0 and 53152 in the other; in the open demo of 2.2 it is 53132).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from mmnar_lightning.extract import Column, ExtractError, TableSpec, scan
from mmnar_lightning.extract.raw import RawFile, column_of, locate

Version = Literal["auto", "2.2", "3.1"]
LAST_YEARS = {"2.2": 2019, "3.1": 2022}
USE = "use MIMIC-IV 2.2 or 3.1"

TEXT = Column(pl.String, required=False)
_CORE = TableSpec("core", "core/admissions", {}, clock=None, optional=True)
_ADMISSIONS = TableSpec("admissions", "hosp/admissions", {}, clock=None)
_ROOMS = ("hosp", "icu")
_PROVIDER = TableSpec("provider", "hosp/provider", {}, clock=None, optional=True)
_CAREGIVER = TableSpec("caregiver", "icu/caregiver", {}, clock=None, optional=True)
_SPOKEN = TableSpec("spoken", "hosp/admissions", {"language": TEXT, "insurance": TEXT}, clock=None)
_GROUPS = TableSpec("groups", "hosp/patients", {"anchor_year_group": TEXT}, clock=None)
_LABS = TableSpec(
    "d_labitems", "hosp/d_labitems", {"itemid": Column(pl.Int64), "label": TEXT}, clock=None, optional=True
)

# What 3.0 moved: one of its labels elsewhere is enough.
MOVED_IN_3_0 = {53132: "Absolute Lymphocyte Count", 53152: "HIV FINAL"}
# What every release has called the same: where one of these means another test, no itemid can be trusted.
ALWAYS = {
    50813: "Lactate",
    50882: "Bicarbonate",
    50885: "Bilirubin, Total",
    50902: "Chloride",
    50912: "Creatinine",
    50931: "Glucose",
    50971: "Potassium",
    50983: "Sodium",
    51006: "Urea Nitrogen",
    51221: "Hematocrit",
    51222: "Hemoglobin",
    51265: "Platelet Count",
    51301: "White Blood Cells",
}
# Values that came with 3.0: languages by their names, where 2.2 has ENGLISH and "?", and further insurances.
OLD_LANGUAGES = ("ENGLISH", "?")
NEW_INSURANCES = ("Private", "Self-pay", "No charge")


@dataclass(frozen=True)
class Release:
    """A release of MIMIC-IV that can be read.

    Args:
        name: ``2.2`` or ``3.1``.
        last_year: The last real year of its stays: where follow-up ends.
    """

    name: str
    last_year: int


def detect(root: Path | str, version: Version = "auto") -> Release:
    """Find out which release an extract is.

    Args:
        root: Its folder, with ``hosp`` and ``icu``.
        version: ``auto`` tells 2.2 and 3.1 apart by what is in the files; ``2.2`` or ``3.1`` is believed. Neither
            lets in what is refused.

    Raises:
        ValueError: If the version is none of these.
        ExtractError: If a table that tells is missing or unreadable, or the extract is a release that is refused.
    """
    if version not in get_args(Version):
        raise ValueError(f"release {version!r} is not one of {', '.join(get_args(Version))}")
    root = Path(root).expanduser()
    _refuse_layout(root)
    _refuse_before_2_2(root)
    if _path_names(root, "3.0"):
        raise ExtractError(f"{root}: {_THREE_ZERO}")
    _refuse_labs(root)
    if version == "auto":
        version = "3.1" if _is_third(root) else "2.2"
    return Release(version, LAST_YEARS[version])


_THREE_ZERO = (
    "is MIMIC-IV 3.0, which gave laboratory tests other itemids by mistake, so that results would be read as those of "
    "other tests; use MIMIC-IV 3.1, which took that back"
)


def _refuse_layout(root: Path) -> None:
    """Refuse 1.0, whose tables lie and are called otherwise, and a folder that is no extract at all.

    Raises:
        ExtractError: If the extract is one of these.
    """
    if (core := locate(root, [_CORE])["core"]) is not None:
        raise ExtractError(f"{core.relative}: a core folder is the layout of MIMIC-IV 1.0, which can't be read; {USE}")
    inside = [path.name.lower() for path in root.iterdir() if path.is_dir()]
    if not set(_ROOMS) & set(inside):
        raise ExtractError(
            f"{root}: no MIMIC-IV extract; the folder that holds its folders {' and '.join(_ROOMS)} is expected, with "
            "hosp/admissions.csv.gz and so on in them"
        )
    raw = _admissions(root)
    if column_of(raw, "ethnicity") is not None and column_of(raw, "race") is None:
        raise ExtractError(f"{raw.relative}: column ethnicity is that of MIMIC-IV 1.0, which can't be read; {USE}")


def _refuse_before_2_2(root: Path) -> None:
    """Refuse 2.0 and 2.1.

    Raises:
        ExtractError: If the extract is one.
    """
    raw = _admissions(root)
    if column_of(raw, "admit_provider_id") is not None:
        return
    found = locate(root, [_PROVIDER, _CAREGIVER])
    absent = ["column admit_provider_id", *(s.file for s in (_PROVIDER, _CAREGIVER) if found[s.name] is None)]
    raise ExtractError(
        f"{raw.relative}: without {', '.join(absent)} this looks like MIMIC-IV 2.0 or 2.1, which hold out other "
        f"subjects and can't be read; {USE}"
    )


def _admissions(root: Path) -> RawFile:
    raw = locate(root, [_ADMISSIONS])["admissions"]
    assert raw is not None
    return raw


def _path_names(root: Path, version: str) -> bool:
    """Whether the folder is called as PhysioNet calls a release: ``mimiciv/3.0`` or ``mimic-iv-3.0``."""
    names = "/".join(root.resolve().parts[-3:]).lower()
    return re.search(rf"mimic-?iv[/-]v?{re.escape(version)}(/|$)", names) is not None


def _refuse_labs(root: Path) -> None:
    """Refuse an extract in which itemids stand for other laboratory tests.

    Raises:
        ExtractError: If it is one.
    """
    rows = scan(root, _LABS).filter(pl.col("itemid").is_in([*ALWAYS, *MOVED_IN_3_0])).collect()
    labels = {item: label.strip().casefold() for item, label in rows.drop_nulls().iter_rows()}
    file = "hosp/d_labitems"
    moved = sorted(i for i, label in MOVED_IN_3_0.items() if labels.get(i, label.casefold()) != label.casefold())
    if moved:
        items = " and ".join(map(str, moved))
        raise ExtractError(f"{file}: by its label of itemid {items} this {_THREE_ZERO}")
    wrong = sorted(i for i, label in ALWAYS.items() if labels.get(i, label.casefold()) != label.casefold())
    if wrong:
        items = ", ".join(map(str, wrong))
        raise ExtractError(
            f"{file}: itemid {items} stands for another laboratory test than in MIMIC-IV 2.2 and 3.1; {USE}"
        )


def _is_third(root: Path) -> bool:
    """Whether an extract with the columns of 2.2 and 3.1 holds what only 3.1 has."""
    return last_year("auto", scan(root, _SPOKEN).collect(), scan(root, _GROUPS).collect()) == LAST_YEARS["3.1"]


def last_year(release: Version, admissions: pl.DataFrame, patients: pl.DataFrame) -> int:
    """Last real year of an extract's stays, where follow-up ends.

    Args:
        release: ``auto`` decides by what is in the tables: languages and insurances that only 3.1 has, or patients of
            2020 and later.
        admissions: ``language`` and ``insurance``.
        patients: ``anchor_year_group``.
    """
    if release != "auto":
        return LAST_YEARS[release]
    spoken = admissions.select(
        pl.col("language").is_in(OLD_LANGUAGES).not_().any() | pl.col("insurance").is_in(NEW_INSURANCES).any()
    )
    later = patients.select(pl.col("anchor_year_group").str.strip_chars().str.starts_with("202").any())
    return LAST_YEARS["3.1" if bool(spoken.item()) or bool(later.item()) else "2.2"]
