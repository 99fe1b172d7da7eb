from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

MEBIBYTE = 2**20
# anonymous memory: the mapped .gz counts in the resident set, but can be dropped at any time
SCRIPT = """
import sys, threading, time
from pathlib import Path
import polars as pl
from mmnar_lightning.extract import Clock, Column, TableSpec, aggregate, scan

peak, running = 0, True
def watch():
    global peak
    while running:
        status = Path("/proc/self/status").read_text().split()
        peak = max(peak, int(status[status.index("RssAnon:") + 1]))
        time.sleep(0.005)

thread = threading.Thread(target=watch)
thread.start()
types = {"id": pl.Int64, "stay": pl.Int64, "offset": pl.Int64, "item": pl.String, "result": pl.Float64}
spec = TableSpec("lab", "lab", {n: Column(t) for n, t in types.items()}, Clock("offset"), not_null=("stay",))
frame = scan(sys.argv[1], spec, Path(sys.argv[2]))
rows = frame.select(pl.len()).collect(engine="streaming").item()
made = aggregate(frame, by=["stay", "item"], value="result", time="offset", tie=["id"]).collect(engine="streaming")
running = False
thread.join()
print(rows, made.height, peak)
"""


def write(root: Path, members: int) -> int:
    """Write lab.csv.gz as that many gzip members of about 10 MiB each; returns its size uncompressed, in bytes."""
    root.mkdir()
    lines = [f"{i},{i % 997},{i % 4000},lab{i % 50},{i % 1000 / 7:.3f},some free text {i}" for i in range(200_000)]
    member = ("\n".join(lines) + "\n").encode()
    packed = gzip.compress(member, 1)
    with (root / "lab.csv.gz").open("wb") as file:
        file.write(gzip.compress(b"ID,stay,offset,item,result,text\n"))
        for _ in range(members):
            file.write(packed)
    return members * len(member)


def peak_mebibytes(root: Path, cache: Path, members: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows, groups, peak = map(int, done.stdout.split())
    assert rows == members * 200_000
    # stay and item both follow the row number: 997 and 50 share no factor
    assert groups == 997 * 50
    return peak // 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = {}
    for members in (25, 110):
        size = write(tmp_path / str(members), members)
        peaks[members] = peak_mebibytes(tmp_path / str(members), tmp_path / f"cache{members}", members)
    assert size > 1000 * MEBIBYTE
    assert peaks[110] < 1024, peaks
    # four times the rows, the same memory: buffers of the streaming engine vary by some dozens of MiB
    assert peaks[110] < 1.5 * peaks[25] + 64, peaks
