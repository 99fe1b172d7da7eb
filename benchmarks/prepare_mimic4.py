"""Time and memory of `mmnar prepare` on MIMIC-IV extracts of growing size, beside decompressing the same files.

Run: ``python benchmarks/prepare_mimic4.py --root DEMO_X25 DEMO_X100 [--source DEMO] [--rounds 3]
[--pandas-python OTHER_ENVIRONMENT/bin/python]``. A root is the open demo of MIMIC-IV with each patient multiplied
(fresh ids, everything else the text it was, one gzip member a file); a table that the plugin needs and the multiplied
extract lacks is multiplied here from ``--source``, and stays in the root.

A round is in turn: ``gzip -dc`` of the files that are read (and ``igzip -dc``, where there is one); each cohort into an
empty folder of stores; the other cohort where the first left its checked tables; a `prepare` whose store is there,
which is what a process costs before it does anything; and one task on labevents, by this package and by pandas: read,
merge with admissions, and last, minimum, maximum, mean and count by admission and item. Seconds are of the wall and of
the processor; memory is the highest anonymous memory of the process, since a mapped file can be dropped at any time.
They depend on the machine and on what else it does: read the ratios. The least of all rounds is kept, since other work
only ever slows one down.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from measuring import RESULTS, Taken, best, decompress, load_1min, machine, prepare_by_turns, save, watched

from mmnar_lightning.extract.raw import RawFile, locate
from mmnar_mimic4.cohort import CohortName
from mmnar_mimic4.extractor import MIMIC4Extractor

COHORTS: tuple[CohortName, ...] = ("post_discharge", "icu_landmark")
OURS = """
import tempfile
import polars as pl
from mmnar_lightning.extract import Clock, Column, TableSpec, aggregate, scan
whole, moment = Column(pl.Int64), Column(pl.Datetime("us"))
labs = {"hadm_id": whole, "itemid": whole, "charttime": moment, "valuenum": Column(pl.Float64)}
stays = {"hadm_id": whole, "admittime": moment, "dischtime": moment}
with tempfile.TemporaryDirectory() as cache:
    labs = scan(sys.argv[2], TableSpec("labs", "hosp/labevents", labs, Clock("charttime")), Path(cache))
    stays = scan(sys.argv[2], TableSpec("stays", "hosp/admissions", stays, None))
    rows = labs.join(stays, on="hadm_id").filter(pl.col("charttime").is_between("admittime", "dischtime"))
    stats = ("last", "min", "max", "mean", "count")
    made = aggregate(rows, ("hadm_id", "itemid"), "valuenum", "charttime", stats=stats).collect(engine="streaming")
report(groups=made.height, values=int(made["count"].sum()), version=pl.__version__)
"""
PANDAS = """
import pandas as pd
root = Path(sys.argv[2])
labs = pd.read_csv(root / "hosp" / "labevents.csv.gz", low_memory=False)
labs["charttime"] = pd.to_datetime(labs["charttime"])
stays = pd.read_csv(root / "hosp" / "admissions.csv.gz", parse_dates=["admittime", "dischtime"])
rows = labs.merge(stays[["hadm_id", "admittime", "dischtime"]], on="hadm_id")
rows = rows[rows["charttime"].between(rows["admittime"], rows["dischtime"]) & rows["valuenum"].notna()]
rows = rows.sort_values("charttime", kind="stable")
made = rows.groupby(["hadm_id", "itemid"])["valuenum"].agg(["last", "min", "max", "mean", "count"])
report(groups=len(made), values=int(made["count"].sum()), version=pd.__version__)
"""


def complete(root: Path, source: Path | None) -> None:
    """Multiply into a root those tables of its source that are needed and not there."""
    needed = [spec.file for spec in MIMIC4Extractor().tables() if not spec.optional]
    absent = [file for file in dict.fromkeys(needed) if not (root / f"{file}.csv.gz").exists()]
    if not absent:
        return
    if source is None:
        raise SystemExit(f"{root}: lacks {', '.join(absent)}; give the extract it was made of as --source")

    def people(folder: Path) -> list[str]:
        return pl.read_csv(folder / "hosp" / "patients.csv.gz", infer_schema=False)["subject_id"].to_list()

    old, new = people(source), people(root)
    for file in absent:
        frame = pl.read_csv(source / f"{file}.csv.gz", infer_schema=False)
        with gzip.open(root / f"{file}.csv.gz", "wb", compresslevel=1) as packed:
            packed.write((",".join(frame.columns) + "\n").encode())
            for start in range(0, len(new), len(old)):
                # a copy's patients stand together, in the order of the source
                renamed = dict(zip(old, new[start : start + len(old)], strict=True))
                copy = frame.with_columns(pl.col("subject_id").replace(renamed))
                packed.write(copy.write_csv(include_header=False).encode())


def raw_files(root: Path) -> list[Path]:
    """The files that `prepare` reads, each once."""
    found: dict[str, RawFile | None] = {}
    for cohort in COHORTS:
        found |= locate(root, MIMIC4Extractor(cohort=cohort).tables())
    return sorted({raw.path for raw in found.values() if raw is not None})


def one_round(root: Path, pandas_python: str | None) -> dict[str, Taken]:
    """What each thing takes, once."""
    files = raw_files(root)
    found = {program: decompress(program, files) for program in ("gzip", "igzip") if shutil.which(program)}
    found |= prepare_by_turns("MIMIC4DataModule", root, COHORTS)
    found["labs_task"] = watched(OURS, root)
    if pandas_python is not None:
        found["labs_task_pandas"] = watched(PANDAS, root, pandas_python)
        ours, theirs = found["labs_task"], found["labs_task_pandas"]
        if (ours["groups"], ours["values"]) != (theirs["groups"], theirs["values"]):
            raise SystemExit("the task on labevents: pandas finds another number of groups or values")
    return found


def ratios(found: dict[str, Taken]) -> dict[str, float]:
    """The ratios that have a target, with what a process costs before it does anything and without."""
    first, second = COHORTS
    start = found["nothing_to_do"]
    made: dict[str, float] = {}
    for key in ("wall", "cpu"):
        for cohort in COHORTS:
            made[f"{cohort}/gzip {key}"] = found[cohort][key] / found["gzip"][key]
            made[f"{cohort}/gzip {key} without starting"] = (found[cohort][key] - start[key]) / found["gzip"][key]
        again = found[f"{second}_after_{first}"]
        made[f"second/first {key}"] = again[key] / found[first][key]
        made[f"second/first {key} without starting"] = (again[key] - start[key]) / (found[first][key] - start[key])
    if "labs_task_pandas" in found:
        for key in ("wall", "cpu", "peak_anon_mib"):
            made[f"labs task, ours/pandas {key}"] = found["labs_task"][key] / found["labs_task_pandas"][key]
    return {what: round(ratio, 3) for what, ratio in made.items()}


def exponents(by_root: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Growth with the size of the extract: the slope of a line through the logarithms; 1 is linear, 0 is flat."""
    sizes = [math.log(one["compressed_mib"]) for one in by_root]
    middle = sum(sizes) / len(sizes)
    spread = sum((size - middle) ** 2 for size in sizes)
    if spread == 0:
        return {}
    made = {}
    for what in ("gzip", *COHORTS, "labs_task", "labs_task_pandas"):
        for key in ("wall", "cpu", "peak_anon_mib"):
            if any(key not in one["found"].get(what, {}) for one in by_root):
                continue
            start = [one["found"]["nothing_to_do"][key] if what in COHORTS and key != "peak_anon_mib" else 0.0
                     for one in by_root]  # fmt: skip
            taken = [one["found"][what][key] - less for one, less in zip(by_root, start, strict=True)]
            logs = [math.log(max(seconds, 1e-3)) for seconds in taken]
            slope = sum((size - middle) * log for size, log in zip(sizes, logs, strict=True)) / spread
            made[f"{what} {key}" + (" without starting" if any(start) else "")] = round(slope, 3)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="extracts, of the same patients multiplied")
    parser.add_argument("--source", type=Path, help="the extract they were made of, for tables that they lack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pandas-python", help="a Python that has pandas; without it there is no comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare_mimic4.json")
    arguments = parser.parse_args()
    load = machine(polars_threads=os.environ.get("POLARS_MAX_THREADS", "default"))
    for root in arguments.root:
        complete(root, arguments.source)
    # by turns, so that what else the machine does falls on all alike
    every: dict[Path, list[dict[str, Taken]]] = {root: [] for root in arguments.root}
    for _ in range(arguments.rounds):
        for root in arguments.root:
            every[root].append(one_round(root, arguments.pandas_python))
    by_root = []
    for root in arguments.root:
        found = best(every[root])
        size = sum(path.stat().st_size for path in raw_files(root)) / 2**20
        by_root.append(
            {"extract": root.name, "compressed_mib": round(size, 1), "found": found, "ratios": ratios(found)}
        )
    result = {
        "what": f"mmnar prepare of MIMIC-IV beside gzip -dc of its files; best of {arguments.rounds} rounds",
        "extracts": by_root,
        "growth_exponents": exponents(by_root),
    }
    save(arguments.out, result, ("polars", "pyarrow", "torch"), load | {"load_1min_after": load_1min()})


if __name__ == "__main__":
    main()
