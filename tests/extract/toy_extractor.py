"""A data source in two tables, for the tests: run as a script it prepares, and kills itself on the way."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mmnar_lightning.extract import (
    Clock,
    Column,
    Counts,
    Extraction,
    ItemCatalogue,
    TableSpec,
    Units,
    aggregate,
    items,
    known_by,
    pivot,
    prepare,
)

CATALOGUE = """raw_id,variable,unit,factor,offset,low,high,description
Na,sodium,mmol/L,,,80,200,Sodium
Glu,glucose,mg/dL,,,0,2000,Glucose
Glu,glucose,mmol/L,18.016,,0,2000,Glucose in SI units
"""
STATS = ("last", "mean")


def write_extract(root: Path, stays: int = 40, labs: int = 400, seed: int = 0) -> None:
    """Write the toy's raw tables, with columns that nobody may read."""
    draw = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    lines = ["stayid,person,age,died,secret"]
    lines += [f"{i},p{i // 2},{draw.randint(18, 89)},{draw.choice(['0', '1', ''])},x{i}" for i in range(stays)]
    with gzip.open(root / "stay.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    lines = ["labid,stayid,taken,entered,item,result,unit,drug,later"]
    for i in range(labs):
        taken = draw.randint(-100, 2000)
        entered = draw.choice(["", str(taken + draw.randint(-30, 300))])
        item, unit = draw.choice([("Na", "mmol/L"), ("Na", ""), ("Glu", "mg/dL"), ("Glu", "mmol/L"), ("Zn", "ug")])
        value = round(draw.uniform(50, 250), 1) if unit != "mmol/L" or item == "Na" else round(draw.uniform(2, 20), 2)
        drug = draw.choice(["", "aspirin", "heparin"])
        lines.append(f"{i},{draw.randrange(stays)},{taken},{entered},{item},{value},{unit},{drug},{draw.random()}")
    (root / "lab.csv").write_text("\n".join(lines) + "\n")


class ToyExtractor:
    dataset = "toy"
    version = "1"
    data_use = "synthetic, free to use"

    def __init__(self, cohort: str = "landmark", minutes: int = 1440) -> None:
        self.cohort = cohort
        self.minutes = minutes
        self.catalogue = ItemCatalogue.from_text(CATALOGUE, "toy.csv")

    def options(self) -> dict[str, Any]:
        return {"minutes": self.minutes}

    def tables(self) -> Sequence[TableSpec]:
        stay = {"stayid": pl.Int64, "person": pl.String, "age": pl.Int64, "died": pl.Boolean}
        lab = {
            "labid": pl.Int64,
            "stayid": pl.Int64,
            "taken": pl.Int64,
            "entered": pl.Int64,
            "item": pl.String,
            "result": pl.Float64,
            "unit": pl.String,
            "drug": pl.String,
        }
        return [
            TableSpec("stay", "stay", {n: Column(t) for n, t in stay.items()}, None, key=("stayid",)),
            TableSpec(
                "lab",
                "lab",
                {n: Column(t) for n, t in lab.items()},
                Clock("taken", "entered"),
                key=("labid",),
                not_null=("stayid",),
                units=Units(self.catalogue, "item", "unit"),
            ),
            TableSpec("film", "film", {"stayid": Column(pl.Int64)}, None, optional=True),
        ]

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        # at run time only: it brings torch
        from mmnar_lightning.records import Modality, RecordSchema, Task

        stays = tables["stay"].filter(pl.col("age") >= 30).sort("stayid").with_row_index("sample").collect()
        log.add("stay", "excluded: under 30", tables["stay"].select(pl.len()).collect().item() - stays.height)
        stays = stays.with_columns(pl.col("sample").cast(pl.Int64), prediction_time=pl.lit(float(self.minutes)))
        at = stays.lazy().select("sample", "stayid", "prediction_time")
        lab = next(spec for spec in self.tables() if spec.name == "lab")
        rows = known_by(tables["lab"].join(at, on="stayid"), lab)
        variables = self.catalogue.variables

        def labs() -> pl.DataFrame:
            found = self.catalogue.apply(rows, "item", "result", "unit", log, "lab")
            wide = pivot(aggregate(found, tie=["labid"], stats=STATS), variables, STATS)
            return wide.with_columns(hours_before=pl.lit(0.0, dtype=pl.Float32))

        def drugs() -> pl.DataFrame:
            hours = ((pl.col("prediction_time") - pl.col("available")) / 60).cast(pl.Float32)
            given = rows.filter(pl.col("drug").is_not_null()).sort("sample", "taken", "labid")
            return given.select("sample", hours_before=hours, code="drug").collect()

        structured = stays.select("sample", pl.col("age").cast(pl.Float32), hours_before=pl.lit(0.0, dtype=pl.Float32))
        samples = stays.select(
            pl.col("person").alias("patient"),
            pl.lit(None, dtype=pl.String).alias("site"),
            pl.col("stayid").alias("id/stay"),
            "prediction_time",
            pl.col("died").alias("label/died"),
        )
        schema = RecordSchema(
            (
                Modality("structured", "vector", ("age",)),
                Modality("labs", "vector", items(variables, STATS)),
                Modality("drugs", "codes"),
            ),
            (Task("died"),),
        )
        return Extraction(schema, samples, {"structured": structured, "labs": labs, "drugs": drugs})


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(moment: str) -> None:
    """Kill this process: ``write:n`` before its n-th rename, ``after:n`` behind it, ``time:s`` after s seconds."""
    kind, number = moment.split(":")
    if kind == "time":
        threading.Timer(float(number), _die).start()
        return
    renames = 0

    def counted(original: Any) -> Any:
        def rename(self: Path, target: Any) -> Any:
            nonlocal renames
            renames += 1
            if kind == "write" and renames == int(number):
                _die()
            result = original(self, target)
            if kind == "after" and renames == int(number):
                _die()
            return result

        return rename

    for name in ("replace", "rename"):
        setattr(Path, name, counted(getattr(Path, name)))


def hashes(store: Path) -> dict[str, str]:
    """Hash every file of the record stores in a folder; what is not a store is listed as such."""
    found = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and not name.startswith(".tables/") and name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _forked(root: Path, store: Path, moment: str | None) -> int:
    """Prepare in a process of its own; returns its signal or exit status, as `subprocess` does."""
    child = os.fork()
    if child == 0:
        if moment is not None:
            _die_at(moment)
        prepare(ToyExtractor(), root, store, progress=False)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _main(root: Path, folder: Path, moments: Sequence[str]) -> None:
    """Prepare uninterrupted, then once per moment killed twice and finished; prints statuses and hashes as JSON.

    One process imports everything and forks before polars starts a thread: an import a kill would take minutes.
    """
    import mmnar_lightning.records  # noqa: F401

    results = {"": [[_forked(root, folder / "whole", None)], hashes(folder / "whole")]}
    for number, moment in enumerate(moments):
        store = folder / str(number)
        statuses = [_forked(root, store, m) for m in (moment, "write:1", None)]
        results[moment] = [statuses, hashes(store)]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
