"""What the benchmarks share: ways that take turns, processes that are watched, the machine, and the file of a result.

The least of several rounds is kept everywhere, since other work on the machine only ever slows one down.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parent / "results"
# Needs nothing but Python: it also runs where pandas is. The process reads its own peaks: what its parent reads from
# wait4 also holds the parent's size at the fork.
WATCH = """
import json, sys, threading, time
from pathlib import Path
status, anonymous, running = Path("/proc/self/status"), 0, True
def mib(name):
    words = status.read_text().split()
    return int(words[words.index(name) + 1]) / 1024
def watch():
    global anonymous
    while running:
        anonymous = max(anonymous, mib("RssAnon:"))
        time.sleep(0.01)
thread = threading.Thread(target=watch, daemon=True)
thread.start()
started = time.perf_counter()
def report(**more):
    global running
    taken = {"wall": time.perf_counter() - started, "cpu": time.process_time()}
    running = False
    thread.join()
    peaks = {"peak_mib": mib("VmHWM:"), "peak_anon_mib": anonymous}
    Path(sys.argv[1]).write_text(json.dumps({**taken, **peaks, **more}))
"""
PREPARE = """
from mmnar_lightning.__main__ import main
done = main(["prepare", "--config", sys.argv[2]])
report()
sys.exit(done)
"""
Taken = dict[str, Any]


def least_seconds(
    ways: Mapping[str, Callable[[], object]], repeat: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each way's best round; the ways take turns, so that what else the machine does falls on all alike."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeat):
        for name, way in ways.items():
            start = clock()
            way()
            best[name] = min(best[name], clock() - start)
    return best


def decompress(program: str, files: Sequence[Path]) -> Taken:
    """What a program takes to decompress files, in one process: seconds of wall and processor."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before, start = spent(), time.perf_counter()
    subprocess.run([program, "-dc", *files], check=True, stdout=subprocess.DEVNULL)
    return {"wall": time.perf_counter() - start, "cpu": spent() - before}


def watched(script: str, argument: Path, python: str = sys.executable) -> Taken:
    """What a script takes in a process of its own: seconds of wall and processor, peaks in MiB, what it reports.

    Args:
        script: Ends with a call of ``report``; its argument is ``sys.argv[2]``.
        argument: That argument.
        python: Which Python runs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark.json"
        command: list[str | Path] = [python, "-c", WATCH + script, mark, argument]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr.strip() or f"a measured process ended with {done.returncode}")
        # the wall's time is the whole process's, with the start of Python
        return {**json.loads(mark.read_text()), "wall": wall}


def prepare_by_turns(datamodule: str, root: Path, cohorts: Sequence[str]) -> dict[str, Taken]:
    """What `mmnar prepare` takes for each of two cohorts, for the second after the first, and with nothing to do."""

    def prepare(stores: Path, cohort: str) -> Taken:
        config = stores.parent / "config.yaml"
        data = {"root": str(root.resolve()), "store": str(stores), "cohort": cohort}
        config.write_text(yaml.safe_dump({"data": {"class_path": datamodule, "init_args": data}}))
        return watched(PREPARE, config)

    first, second = cohorts
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = Path(folder) / "stores"
        found[first] = prepare(stores, first)
        found[f"{second}_after_{first}"] = prepare(stores, second)
        found["nothing_to_do"] = prepare(stores, second)
    with tempfile.TemporaryDirectory() as folder:
        found[second] = prepare(Path(folder) / "stores", second)
    return found


def best(every: Sequence[Mapping[str, Taken]]) -> dict[str, Taken]:
    """The least seconds and the highest peaks of several rounds."""
    found = {}
    for what, last in every[-1].items():
        seconds = {key: round(min(one[what][key] for one in every), 3) for key in ("wall", "cpu")}
        peaks = {key: round(max(one[what][key] for one in every)) for key in last if key.startswith("peak_")}
        found[what] = {**last, **seconds, **peaks}
    return found


def peak_rss_gib() -> float:
    """Highest memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def load_1min() -> float:
    """Processes that run or want to, over the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(**more: object) -> dict[str, object]:
    """The machine and how busy it is, and further facts of a benchmark."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load_1min": load_1min(),
        "system": platform.system(),
        **more,
    }


def save(out: Path, found: Mapping[str, object], packages: Sequence[str], machine: Mapping[str, object]) -> None:
    """Write what was found as JSON, and print it, with versions, machine and date.

    Args:
        out: The file.
        found: What was measured, and how.
        packages: Those that it depends on, besides this one.
        machine: See `machine`.
    """
    result = {
        **found,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mmnar-lightning", *packages)},
        "machine": machine,
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)
