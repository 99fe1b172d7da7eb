"""Billing codes: diagnoses and procedures as coded after discharge.

Coders assign them from the whole record, days to weeks after the patient has left, and no column says when. They know
how the stay went, so that nothing that reads them could be used at the prediction time. They exist here only because
published work reads them: off by default, on in the ``paper`` preset.
"""

from __future__ import annotations

import polars as pl

from mmnar_mimic4.tables import ADMISSION, DIAGNOSES, PROCEDURE_CODES, SUBJECT
from mmnar_mimic4.windows import Source

# Beginning of a code by table: ``icd9:00845``, ``proc10:02H633Z``.
BEGINNINGS = {DIAGNOSES.name: "icd", PROCEDURE_CODES.name: "proc"}


def billing(source: Source, admissions: pl.DataFrame) -> pl.DataFrame:
    """The ``billing`` modality: codes of the episode's admissions.

    Codes are text: ``00845`` and ``845`` are different codes, and a code is one only with its version (9 or 10).

    Args:
        source: The tables ``diagnoses_icd`` and ``procedures_icd``, and the samples.
        admissions: `Cohort.admissions`: ``sample``, ``hadm_id``.

    Returns:
        ``sample``, ``hours_before`` (null: nobody knows when) and ``code``; one row for each code of a sample, sorted.
    """
    mine = admissions.join(source.samples.select("sample", SUBJECT), on="sample", how="inner", validate="m:1").lazy()
    parts = []
    for table, beginning in BEGINNINGS.items():
        rows = source.frames[table].join(mine, on=[ADMISSION, SUBJECT], how="inner")
        bare = pl.col("icd_code").str.strip_chars()
        version = pl.col("icd_version").cast(pl.String)
        code = pl.when(bare != "").then(pl.lit(beginning) + version + pl.lit(":") + bare)
        coded = rows.select("sample", code=code)
        none = coded.select(pl.col("code").is_null().sum()).collect(engine="streaming").item()
        source.log.add(table, "rows without a code or its version, not used", none)
        parts.append(coded.filter(pl.col("code").is_not_null()))
    codes = pl.concat(parts).unique().with_columns(hours_before=pl.lit(None, pl.Float32))
    return codes.select("sample", "hours_before", "code").sort("sample", "code").collect(engine="streaming")
