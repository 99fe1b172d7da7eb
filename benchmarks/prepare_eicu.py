"""Time and memory of `mmnar prepare` on eICU extracts, beside decompressing the same files in the same run.

Run: ``python benchmarks/prepare_eicu.py [--root EXTRACT] [--patients 500 2000 8000] [--rounds 3]``. A round is in turn:
``gzip -dc`` of the files; each cohort into an empty folder of stores; the second where the first left its checked
tables; and a `prepare` whose store is there, which is what a process costs before it does anything. Seconds are of the
wall and of the processor. They depend on the machine and on what else it does: read the ratios, which are of processor
time. The least of all rounds is kept, since other work only ever slows one down.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from measuring import RESULTS, Taken, best, decompress, machine, prepare_by_turns, save

from mmnar_eicu import EICUExtractor
from mmnar_eicu.simulate import simulate

COHORTS = ("landmark", "unit_discharge")


def raw_files(root: Path) -> list[Path]:
    """The files that `prepare` reads."""
    names = {spec.file.lower() for spec in EICUExtractor().tables()}
    return [path for path in sorted(root.glob("*.csv.gz")) if path.name.lower().removesuffix(".csv.gz") in names]


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """The least of several rounds, and processor time as a multiple of gzip's."""
    every = []
    for _ in range(rounds):
        gzip = {"gzip": decompress("gzip", raw_files(root))}
        every.append(gzip | prepare_by_turns("EICUDataModule", root, COHORTS))
    found: dict[str, Taken] = best(every)
    unit, start = found["gzip"]["cpu"], found["nothing_to_do"]["cpu"]
    for cohort in COHORTS:
        found[cohort]["cpu_over_gzip"] = round(found[cohort]["cpu"] / unit, 1)
        found[cohort]["cpu_over_gzip_without_starting"] = round((found[cohort]["cpu"] - start) / unit, 1)
    size = sum(path.stat().st_size for path in root.glob("*.csv.gz"))
    return {"compressed_mib": round(size / 2**20, 1), **found}


def growth(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many times more each extract takes than the smallest."""
    names = sorted(found, key=int)
    first = found[names[0]]
    grown: dict[str, Any] = {}
    for name in names[1:]:
        ratios = {"patients": int(name) / int(names[0]), "gzip/cpu": found[name]["gzip"]["cpu"] / first["gzip"]["cpu"]}
        for cohort in COHORTS:
            for what in ("wall", "cpu", "peak_mib"):
                ratios[f"{cohort}/{what}"] = found[name][cohort][what] / first[cohort][what]
        grown[name] = {what: round(ratio, 2) for what, ratio in ratios.items()}
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, help="folder of an extract, such as the open demo")
    parser.add_argument("--patients", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare_eicu.json")
    arguments = parser.parse_args()
    load = machine(polars_threads=os.environ.get("POLARS_MAX_THREADS", "default"))
    extract = None if arguments.root is None else measure(arguments.root, arguments.rounds)
    simulated = {}
    with tempfile.TemporaryDirectory() as folder:
        for patients in arguments.patients:
            root = Path(folder) / str(patients)
            simulate(root, patients=patients, seed=1, progress=False)
            simulated[str(patients)] = measure(root, arguments.rounds)
    result = {
        "what": f"mmnar prepare of each eICU cohort beside gzip -dc of its files; best of {arguments.rounds} rounds",
        "extract": extract,
        "simulated_by_patients": simulated,
        "growth_over_the_smallest": growth(simulated),
    }
    save(arguments.out, result, ("polars", "pyarrow", "torch"), load)


if __name__ == "__main__":
    main()
