"""What this machine has: packages and their versions, devices, folders that can be written to."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

DISTRIBUTION = "mmnar-lightning"
EXTRAS = {
    "evaluation": "logistic regression and boosted trees: in `test` beside the network, in `evaluate`",
    "lora": "adapters in place of fine-tuning a text encoder (train: lora)",
    "docs": "building the documentation",
    "dev": "running the tests",
}
GIB = 2**30


@dataclass(frozen=True)
class Package:
    """A package that is needed.

    Args:
        name: Its distribution.
        bound: Which versions will do.
        found: The version that is installed; None where there is none.
        fits: Whether that one will do.
    """

    name: str
    bound: str
    found: str | None
    fits: bool


@dataclass(frozen=True)
class Device:
    """What can compute.

    Args:
        name: As torch calls its kind: ``cpu``, ``cuda:0``, ``mps``.
        what: Its model, or how many cores.
        memory: How much it has, and how much of that is free, in words.
        bf16: Whether it computes in bfloat16, in words.
    """

    name: str
    what: str
    memory: str
    bf16: str


@dataclass(frozen=True)
class Folder:
    """A folder that commands write to.

    Args:
        path: Where it is, or will be made.
        what: What is kept there.
        writable: Whether it, or the folder it will be made in, can be written to.
        free: Bytes that are free on its disk.
    """

    path: Path
    what: str
    writable: bool
    free: int


def packages(extra: str | None = None) -> list[Package]:
    """Packages that are always needed, or those that an extra brings, in alphabetical order.

    Returns:
        Nothing where this package was not installed but only put on the path.
    """
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return []
    given = {"extra": extra or ""}
    wanted = [r for r in listed if r.marker is None or r.marker.evaluate(given)]
    if extra is not None:
        wanted = [r for r in wanted if r.marker is not None and not r.marker.evaluate({"extra": ""})]
    found = []
    for requirement in sorted(wanted, key=lambda r: r.name.lower()):
        if requirement.name == DISTRIBUTION:
            # an extra that names another one of ours
            continue
        there = installed(requirement.name)
        fits = there is not None and requirement.specifier.contains(there, prereleases=True)
        found.append(Package(requirement.name, str(requirement.specifier), there, fits))
    return found


def extras() -> dict[str, list[Package]]:
    """Packages of each optional extra."""
    try:
        names = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return {}
    order = [*(name for name in EXTRAS if name in names), *(name for name in names if name not in EXTRAS)]
    return {name: packages(name) for name in order}


def installed(distribution: str) -> str | None:
    """Version of a distribution; None where it isn't installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def devices() -> list[Device]:
    """The processor and each accelerator that torch can use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = platform.processor() or platform.machine()
    found = [Device("cpu", f"{cores} cores, {name}", _memory(), _processor_bf16())]
    for k in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(k)
        free, total = torch.cuda.mem_get_info(k)
        memory = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
        # from compute capability 8.0 on in hardware
        bf16 = "yes" if facts.major >= 8 else "emulated, slow"
        found.append(Device(f"cuda:{k}", facts.name, memory, bf16))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", "shared with the processor", "yes, from macOS 14 on"))
    return found


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    told = f"{os.sysconf('SC_PHYS_PAGES') * page / GIB:.1f} GiB"
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return told
    free = os.sysconf("SC_AVPHYS_PAGES") * page
    facts = Path("/proc/meminfo")
    if facts.is_file():
        # what is free, and what the system gives back when it is asked
        lines = dict(line.split(":", 1) for line in facts.read_text(encoding="utf-8").splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free // 1024} kB").split()[0]) * 1024
    return f"{told}, {free / GIB:.1f} free"


def _processor_bf16() -> str:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        return "unknown"
    words = set(flags.read_text(encoding="utf-8", errors="replace").split())
    return "yes" if {"amx_bf16", "avx512_bf16", "bf16", "asimdbf16"} & words else "emulated, slow"


def folders() -> list[Folder]:
    """Folders that commands write to where nothing else is said."""
    listed = [
        (Path("stores"), "record stores (data.init_args.store)"),
        (Path("runs"), "runs (run_dir)"),
        (Path(tempfile.gettempdir()), "temporary files"),
        (_weights(), "downloaded weights of encoders (HF_HOME)"),
    ]
    return [_folder(path.expanduser().absolute(), what) for path, what in listed]


def _weights() -> Path:
    home = os.environ.get("HF_HOME")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def _folder(path: Path, what: str) -> Folder:
    there = next(place for place in (path, *path.parents) if place.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Folder(path, what, writable, shutil.disk_usage(there).free)
