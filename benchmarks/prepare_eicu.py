"""Time and memory of `mmnar prepare` on eICU extracts, beside decompressing the same files in the same run.

Run: ``python benchmarks/prepare_eicu.py [--root EXTRACT] [--patients 500 2000 8000] [--rounds 3]``. A round is in turn:
``gzip -dc`` of the files; each cohort into an empty folder of stores; the second where the first left its checked
tables; and a `prepare` whose store is there, which is what a process costs before it does anything. Seconds are of the
wall and of the processor. They depend on the machine and on what else it does: read the ratios, which are of processor
time. The least of all rounds is kept, since other work only ever slows one down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mmnar_eicu import EICUExtractor
from mmnar_eicu.simulate import simulate

COHORTS = ("landmark", "unit_discharge")
# The process reads its own mark: what its parent reads from wait4 also holds the parent's size at the fork.
PREPARE = """
import sys, time
from pathlib import Path
from mmnar_lightning.__main__ import main
status = main(["prepare", "--config", sys.argv[1]])
marks = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
Path(sys.argv[2]).write_text(f"{time.process_time()} {int(marks[0].split()[1]) / 1024}")
sys.exit(status)
"""


def decompress(root: Path) -> dict[str, float]:
    """What gzip takes for the files that `prepare` reads."""
    names = {spec.file.lower() for spec in EICUExtractor().tables()}
    files = [path for path in sorted(root.glob("*.csv.gz")) if path.name.lower().removesuffix(".csv.gz") in names]
    before, start = os.times(), time.perf_counter()
    subprocess.run(["gzip", "-dc", *files], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu}


def prepare(root: Path, stores: Path, cohort: str) -> dict[str, float]:
    """What one `mmnar prepare` takes in a process of its own: seconds of wall and processor, peak memory in MiB."""
    config, mark = stores.parent / "config.yaml", stores.parent / "mark"
    data = {"root": str(root.resolve()), "store": str(stores), "cohort": cohort}
    config.write_text(yaml.safe_dump({"data": {"class_path": "EICUDataModule", "init_args": data}}))
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PREPARE, config, mark], capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr.splitlines()[-1])
    cpu, peak = map(float, mark.read_text().split())
    return {"wall": wall, "cpu": cpu, "peak_mib": peak}


def one_round(root: Path) -> dict[str, dict[str, float]]:
    """What each thing takes, once."""
    first, second = COHORTS
    found = {"gzip": decompress(root)}
    with tempfile.TemporaryDirectory() as folder:
        found[first] = prepare(root, Path(folder) / "stores", first)
        found[f"{second}_after_{first}"] = prepare(root, Path(folder) / "stores", second)
        found["nothing_to_do"] = prepare(root, Path(folder) / "stores", second)
    with tempfile.TemporaryDirectory() as folder:
        found[second] = prepare(root, Path(folder) / "stores", second)
    return found


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """The least seconds and the highest peak of several rounds, and processor time as a multiple of gzip's."""
    every = [one_round(root) for _ in range(rounds)]
    found: dict[str, dict[str, float]] = {}
    for what in every[0]:
        best = {key: round(min(one[what][key] for one in every), 3) for key in ("wall", "cpu")}
        peaks = {"peak_mib": round(max(one[what]["peak_mib"] for one in every))} if what != "gzip" else {}
        found[what] = {**best, **peaks}
    gzip, start = found["gzip"]["cpu"], found["nothing_to_do"]["cpu"]
    for cohort in COHORTS:
        found[cohort]["cpu_over_gzip"] = round(found[cohort]["cpu"] / gzip, 1)
        found[cohort]["cpu_over_gzip_without_starting"] = round((found[cohort]["cpu"] - start) / gzip, 1)
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


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "polars_threads": os.environ.get("POLARS_MAX_THREADS", "default"),
        "system": platform.system(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, help="folder of an extract, such as the open demo")
    parser.add_argument("--patients", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prepare_eicu.json")
    arguments = parser.parse_args()
    load = machine()
    extract = None if arguments.root is None else measure(arguments.root, arguments.rounds)
    simulated = {}
    with tempfile.TemporaryDirectory() as folder:
        for patients in arguments.patients:
            root = Path(folder) / str(patients)
            simulate(root, patients=patients, seed=1, progress=False)
            simulated[str(patients)] = measure(root, arguments.rounds)
    packages = ("mmnar-lightning", "polars", "pyarrow", "torch")
    result = {
        "what": f"mmnar prepare of each eICU cohort beside gzip -dc of its files; best of {arguments.rounds} rounds",
        "extract": extract,
        "simulated_by_patients": simulated,
        "growth_over_the_smallest": growth(simulated),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": load,
        "date": datetime.now(UTC).date().isoformat(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
