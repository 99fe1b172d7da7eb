"""Modalities that are codes: what was ordered, given, diagnosed or written, by the prediction time.

Every function takes a table cut by `windows.known` and returns ``sample``, ``code``, ``hours_before`` with one row an
occurrence; `latest` keeps the last occurrence of a code in a sample.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import polars as pl

DEPTH = 8  # longest path of eICU's diagnosis and treatment trees
RECENT = 4.0  # hours in which an infusion counts as running still
NO_NAME = r"^[\W\d_]*$"


@cache
def infusion_drugs() -> tuple[pl.DataFrame, str]:
    """Read ``infusions.csv`` (pattern, drug, class; the first pattern that fits decides) and its sha256."""
    raw = files("mmnar_eicu").joinpath("catalogue/infusions.csv").read_bytes()
    return pl.read_csv(raw, infer_schema=False), hashlib.sha256(raw).hexdigest()


def latest(frame: pl.LazyFrame) -> pl.LazyFrame:
    """One row for each code of a sample, at its last occurrence, in total order."""
    coded = frame.filter(pl.col("code").is_not_null())
    last = coded.group_by("sample", "code").agg(pl.col("hours_before").min())
    return last.select("sample", pl.col("hours_before").cast(pl.Float32), "code").sort("sample", "code")


def prefixes(path: str, separator: str = "|", source: str = "") -> pl.Expr:
    """All beginnings of a path as a list of codes: ``a|b|c`` → ``a``, ``a|b``, ``a|b|c``."""
    parts = pl.col(path).str.split(separator).list.eval(pl.element().str.strip_chars())
    heads = [parts.list.head(depth).list.join(separator) for depth in range(1, DEPTH + 1)]
    return pl.concat_list([pl.lit(source) + head for head in heads]).list.unique()


def _codes(frame: pl.LazyFrame, lists: pl.Expr) -> pl.LazyFrame:
    # A list without any code stays one row with none, to be counted.
    coded = frame.select("sample", "hours_before", lists.list.drop_nulls().alias("code"))
    return coded.explode("code", empty_as_null=True, keep_nulls=True)


def drug_name(column: str = "drugname") -> pl.Expr:
    """A drug's name without container, strength, form: ``5 ML VIAL : DILTIAZEM HCL 25 MG/5ML`` → ``diltiazem hcl``."""
    name = pl.col(column).str.to_lowercase()
    name = name.str.replace(r"^\s*[\d.,]+ *(ml|gm|g|each|ea)?\b[ a-z]*[:-] *", "")
    name = name.str.replace_all(r"\(.*?\)", " ").str.replace(r"[\d.,]+ *(%|[a-z]).*$", " ")
    name = name.str.replace_all(r"[^a-z%/+ -]+", " ").str.replace_all(r"\s+", " ").str.strip_chars(" -/+")
    return pl.when(name.str.contains(NO_NAME)).then(None).otherwise(name)


def drugs(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of medication and admissionDrug: ``hicl:`` and First Databank's ingredient list number, or ``name:``.

    The name is null in 40 % of eICU's medication, the number in others.
    """
    number = pl.when(pl.col("drughiclseqno") > 0).then(pl.lit("hicl:") + pl.col("drughiclseqno").cast(pl.String))
    code = pl.coalesce(number, pl.lit("name:") + drug_name())
    return frame.select("sample", "hours_before", code=code)


def infusions(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of infusionDrug: ``drug:`` and ``class:``, and ``running:`` if charted within the last hours.

    A rate of 0 is an infusion that was stopped: no code.
    """
    table = infusion_drugs()[0]
    name = pl.col("drugname").str.to_lowercase()
    drug: pl.Expr = pl.lit(None, pl.String)
    family: pl.Expr = pl.lit(None, pl.String)
    for pattern, word, group in reversed(table.rows()):
        fits = name.str.contains(pattern)
        drug = pl.when(fits).then(pl.lit(word)).otherwise(drug)
        family = pl.when(fits).then(pl.lit(group)).otherwise(family)
    rate = pl.col("drugrate").str.strip_chars().cast(pl.Float64, strict=False)
    given = rate.is_null() | (rate > 0)
    named = frame.with_columns(
        drug=pl.when(given).then(drug), family=pl.when(given).then(family), name=pl.when(given).then(drug_name())
    )
    recent = pl.col("hours_before") <= RECENT
    lists = pl.concat_list(
        pl.lit("drug:") + pl.col("drug"),
        pl.lit("class:") + pl.col("family"),
        pl.when(recent).then(pl.lit("running:") + pl.col("drug")),
        pl.when(recent).then(pl.lit("running:") + pl.col("family")),
        pl.when(pl.col("drug").is_null()).then(pl.lit("name:") + pl.col("name")),
    )
    return _codes(named, lists)


def tree(frame: pl.LazyFrame, column: str, source: str = "") -> pl.LazyFrame:
    """Codes of a path such as ``cardiovascular|shock / hypotension|sepsis``: the path and all its beginnings."""
    return _codes(frame, prefixes(column, source=source))


def admission_diagnoses(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of admissionDx, ``adm:``; the common root is left out."""
    path = pl.col("admitdxpath").str.replace(r"^admission diagnosis\|", "")
    return tree(frame.with_columns(path.alias("admitdxpath")), "admitdxpath", "adm:")


def past_history(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of pastHistory, ``hx:``: the disease and the organ system; the answer stands in the path."""
    path = pl.col("pasthistorypath").str.replace(r"^notes/Progress Notes/Past History/", "")
    path = path.str.replace(r"^Organ Systems/", "").str.replace_all("/", "|", literal=True)
    return tree(frame.with_columns(path.alias("pasthistorypath")), "pasthistorypath", "hx:")


def notes(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of note: ``note:`` and its path (the picked answer is its last part), ``note_type:``. No text is stored."""
    return _codes(frame, pl.concat_list(pl.lit("note:") + note_path(), pl.lit("note_type:") + pl.col("notetype")))


def note_path() -> pl.Expr:
    """The path of a row of note, without the root that all have in common."""
    return pl.col("notepath").str.replace(r"^notes/(Progress Notes/)?", "")


def exams(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of physicalExam: ``exam:`` and its path, without the number or text typed beside it."""
    return frame.select("sample", "hours_before", code=pl.lit("exam:") + exam_path())


def exam_path() -> pl.Expr:
    """The path of a row of physicalExam, without the root that all have in common."""
    return pl.col("physicalexampath").str.replace(r"^notes/Progress Notes/Physical Exam/(Physical Exam/)?", "")


def coma_scores(frame: pl.LazyFrame) -> pl.LazyFrame:
    """``gcs:`` and a band of the Glasgow Coma Scale, from eyes + verbal + motor of one exam or its total.

    Bands 3-5, 6-8, 9-12, 13-14, 15.
    """
    path = pl.col("physicalexampath")
    one = [
        path.str.extract(rf"/GCS/{part}/(\d+)$").cast(pl.Int64, strict=False).max().alias(f"gcs_{k}")
        for k, part in enumerate(("Eyes Score", "Verbal Score", "Motor Score"))
    ]
    total = path.str.extract(r"/GCS/(\d+)$").cast(pl.Int64, strict=False).max().alias("total")
    scored = frame.filter(path.str.contains("/GCS/")).group_by("sample", "hours_before").agg(*one, total)
    points = pl.coalesce("total", pl.col("gcs_0") + pl.col("gcs_1") + pl.col("gcs_2"))
    band = pl.when(points <= 5).then(pl.lit("gcs:3-5")).when(points <= 8).then(pl.lit("gcs:6-8"))
    band = band.when(points <= 12).then(pl.lit("gcs:9-12")).when(points <= 14).then(pl.lit("gcs:13-14"))
    known = scored.filter(points.is_between(3, 15))
    return known.select("sample", "hours_before", code=band.otherwise(pl.lit("gcs:15")))


def cultures(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Codes of microLab: ``culture:`` and its site; the organism has no time of its own and is never read."""
    return frame.select("sample", "hours_before", code=pl.lit("culture:") + pl.col("culturesite"))
