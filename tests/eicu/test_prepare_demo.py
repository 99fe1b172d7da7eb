"""What `mmnar prepare` takes on the open demo: at most a minute and 2 GiB for both cohorts together."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SECONDS, MEBIBYTES = 60.0, 2048
# The process reads its own mark: what a parent reads also holds the parent's size at the fork.
SCRIPT = """
import sys
from pathlib import Path
from mmnar_lightning.__main__ import main
statuses = [main(["prepare", "--config", config]) for config in sys.argv[1:]]
mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print("status", *statuses, "peak", int(mark.split()[1]) // 1024)
"""


@pytest.mark.shared_data
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOT TESTED: peak memory is read from /proc")
def test_both_cohorts_in_a_minute_and_2_gib(demo_root: Path, tmp_path: Path) -> None:
    configs = []
    for cohort in ("landmark", "unit_discharge"):
        data = {"root": str(demo_root.resolve()), "store": str(tmp_path / "stores"), "cohort": cohort, "lab_delay": 59}
        configs.append(tmp_path / f"{cohort}.yaml")
        configs[-1].write_text(yaml.safe_dump({"data": {"class_path": "EICUDataModule", "init_args": data}}))
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SCRIPT, *configs], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    *_, landmark, discharge, _, peak = done.stdout.split()
    assert (landmark, discharge) == ("0", "0"), done.stderr
    assert seconds <= SECONDS
    assert int(peak) <= MEBIBYTES
    assert len(list((tmp_path / "stores").glob("eicu-*/manifest.json"))) == 2
