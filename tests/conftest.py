"""A small synthetic source for every room's tests: frames, a store of them, and a datamodule over such a store."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from mmnar_lightning.records import Modality, RecordDataModule, RecordSchema, Task, write_store

# the tensors of tests are small: threads cost more than they bring, above all on a busy machine
torch.set_num_threads(1)

VITALS = ("heart_rate", "resp_rate", "spo2", "temperature", "sbp", "gcs")
LABS = ("lactate", "creatinine", "sodium", "albumin", "troponin")
VARIABLES = ("heart_rate", "map", "fio2")
CODES = tuple(f"code_{k:02d}" for k in range(20))
SITES = ("s0", "s1", "s2", "s3", "s4", "s5")
NO_LABS = "s5"  # the site that collects no labs
MODALITIES = (
    Modality("vitals", "vector", VITALS),
    Modality("labs", "vector", LABS),
    Modality("diagnoses", "codes"),
    Modality("monitor", "series", VARIABLES),
    Modality("notes", "text"),
)
TASKS = (
    Task("death", "in hospital", "died before discharge"),
    Task("death_early", "within 7 days", "died within 7 days", parent="death"),
    Task("readmission", "within 30 days", "came back"),
)


@dataclass(frozen=True)
class Records:
    """What `write_store` takes."""

    schema: RecordSchema
    samples: pl.DataFrame
    elements: dict[str, pl.DataFrame]


class MakeRecords(Protocol):
    def __call__(self, n_patients: int = 200, seed: int = 0) -> Records: ...


class MakeStore(Protocol):
    def __call__(self, parent: Path, n_patients: int = 200, seed: int = 0, records: Records | None = None) -> Path: ...


class MakeDataModule(Protocol):
    def __call__(self, parent: Path, n_patients: int = 200, **options: Any) -> RecordDataModule: ...


def synthetic_records(n_patients: int = 200, seed: int = 0) -> Records:
    """Draw patients with 1 or 2 samples each, whose sickness shows in every modality and in which of them there are.

    A latent z [4] a sample drives values, labels (linear logits) and availability (not at random: the sicker, the more
    is measured). Site ``s5`` collects no labs. Sample 0 has everything, sample 1 nothing. Values are the same for the
    same seed and patient number, so that a larger cohort holds the smaller one.
    """
    rows: list[dict[str, Any]] = []
    elements: dict[str, list[dict[str, Any]]] = {m.name: [] for m in MODALITIES}
    weight = np.random.default_rng(1).normal(size=(4, len(VITALS) + len(LABS) + len(CODES)))
    for patient in range(n_patients):
        rng = np.random.default_rng((seed, patient))
        home = rng.integers(len(SITES))
        for episode in range(1 + (rng.random() < 0.25)):
            site = SITES[home if rng.random() < 0.9 else rng.integers(len(SITES))]
            z = rng.normal(size=4)
            sample, signal = len(rows), z @ weight
            there = rng.random(5) < 1 / (1 + np.exp(-(z[[0, 0, 1, 2, 0]] + [2.0, 0.7, 1.0, 0.5, 0.0])))
            there[1] &= site != NO_LABS
            if sample < 2:
                site, there = SITES[0], np.full(5, sample == 0)
            rows.append(_sample_row(rng, patient, episode, site, z))
            if there[0]:
                elements["vitals"].append(_vector_row(rng, sample, VITALS, signal[:6], 0.1))
            if there[1]:
                elements["labs"].append(_vector_row(rng, sample, LABS, signal[6:11], 0.25))
            if there[2]:
                chosen = np.flatnonzero(rng.random(len(CODES)) < 1 / (1 + np.exp(2 - signal[11:])) + (sample == 0))
                elements["diagnoses"] += [
                    {"sample": sample, "hours_before": float(rng.uniform(0, 48)), "code": CODES[k]} for k in chosen
                ]
            if there[3]:
                hours = np.sort(rng.uniform(0, 24, size=int(rng.integers(1, 7))))[::-1]
                which = rng.integers(len(VARIABLES), size=len(hours))
                elements["monitor"] += [
                    {"sample": sample, "hours_before": float(h), "variable": VARIABLES[v], "value": float(signal[v])}
                    for h, v in zip(hours, which, strict=True)
                ]
            if there[4]:
                words = "worse" if z[0] > 0 else "stable"
                elements["notes"] += [
                    {"sample": sample, "hours_before": None if k else 1.5, "text": f"note {k}: patient is {words} — ü"}
                    for k in range(int(rng.integers(1, 4)))
                ]
    samples = pl.DataFrame(
        rows, schema_overrides={f"label/{t.name}": pl.Boolean for t in TASKS}, infer_schema_length=None
    )
    return Records(RecordSchema(MODALITIES, TASKS), samples, {name: _frame(name, r) for name, r in elements.items()})


def _sample_row(
    rng: np.random.Generator, patient: int, episode: int, site: str, z: np.ndarray[Any, Any]
) -> dict[str, Any]:
    death = bool(rng.random() < 1 / (1 + np.exp(-(2.0 * z[0] + z[1] - 0.5))))
    late = None if rng.random() < 0.1 else bool(rng.random() < 0.5)
    return {
        "patient": f"p{patient:05d}",
        "site": None if rng.random() < 0.03 else site,
        "id/stay": patient * 10 + episode,
        "prediction_time": 1440.0 * episode,
        "label/death": death,
        "label/death_early": late if death else False,
        "label/readmission": None if death or rng.random() < 0.2 else bool(rng.random() < 1 / (1 + np.exp(-z[2]))),
        "group/sex": str(rng.choice(["female", "male"])),
        "group/age_band": str(rng.choice(["18-44", "45-64", "65-79", "80+"])),
        "group/region": "south" if site in SITES[:3] else "north",
        "group/year": str(2014 + int(rng.integers(2))),
    }


def _vector_row(
    rng: np.random.Generator, sample: int, items: tuple[str, ...], signal: np.ndarray[Any, Any], missing: float
) -> dict[str, Any]:
    values = signal + 0.5 * rng.normal(size=len(items))
    gone = rng.random(len(items)) < missing
    gone[0] = False
    kept = {item: None if g else float(v) for item, v, g in zip(items, values, gone, strict=True)}
    return {"sample": sample, "hours_before": float(rng.uniform(0, 24)), **kept}


def _frame(name: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    kinds: dict[str, dict[str, Any]] = {
        "vitals": dict.fromkeys(VITALS, pl.Float32),
        "labs": dict.fromkeys(LABS, pl.Float32),
        "diagnoses": {"code": pl.String},
        "monitor": {"variable": pl.String, "value": pl.Float32},
        "notes": {"text": pl.String},
    }
    return pl.DataFrame(rows, schema={"sample": pl.Int64, "hours_before": pl.Float32, **kinds[name]})


class StoreDataModule(RecordDataModule):
    """A datamodule over a store that is there already.

    Args:
        path: The store.
        options: Those of `RecordDataModule`.
    """

    def __init__(self, path: Path | str, **options: Any) -> None:
        super().__init__(Path(path).parent, **options)
        self.path = Path(path)

    def prepare_store(self) -> Path:
        return self.path


@pytest.fixture(scope="session")
def open_data() -> Callable[[str], Path]:
    """`open_data("eicu-demo")` is a folder of open data; skips where it is absent."""
    shared = os.environ.get("MMNAR_SHARED_DATA")
    parent = Path(shared) if shared else Path(__file__).parents[2] / "shared" / "data"

    def folder(name: str) -> Path:
        if not (parent / name).is_dir():
            pytest.skip(f"NOT TESTED: {parent / name} is absent; set MMNAR_SHARED_DATA to its parent folder")
        return parent / name

    return folder


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """`load_module(path)` imports a file that stands beside tests: they are no package."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_two_ranks() -> Callable[..., None]:
    """`run_two_ranks(script, *arguments)` runs `script RANK *arguments` as ranks 0 and 1; both must end well."""

    def run(script: Path, *arguments: str | Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), *map(str, arguments)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=120)[1] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)

    return run


@pytest.fixture(scope="session")
def make_records() -> MakeRecords:
    """`make_records(n_patients=200, seed=0)` returns schema, samples and elements, before they are stored."""
    return synthetic_records


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    """`make_store(tmp_path, n_patients=200, seed=0)` writes a synthetic store and returns its folder."""

    def make(parent: Path, n_patients: int = 200, seed: int = 0, records: Records | None = None) -> Path:
        drawn = synthetic_records(n_patients, seed) if records is None else records
        fingerprint = f"{n_patients:08d}{seed:08d}"
        return write_store(
            parent, "synthetic", "all", fingerprint, drawn.schema, drawn.samples, drawn.elements, {"counts": []}
        )

    return make


@pytest.fixture(scope="session")
def store_datamodule() -> type[StoreDataModule]:
    """The class: `store_datamodule(store_folder, batch_size=32, …)`."""
    return StoreDataModule


@pytest.fixture(scope="session")
def make_datamodule(make_store: MakeStore) -> MakeDataModule:
    """`make_datamodule(tmp_path, n_patients=200, **options)` returns a datamodule over a synthetic store."""

    def make(parent: Path, n_patients: int = 200, **options: Any) -> RecordDataModule:
        return StoreDataModule(make_store(parent, n_patients), **options)

    return make


@pytest.fixture(scope="session")
def own_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `TablesDataModule`: the synthetic vectors and codes of 360 patients."""
    records = synthetic_records(360)
    root = tmp_path_factory.mktemp("own-tables")
    labels = {task.name: f"label/{task.name}" for task in TASKS}
    samples = records.samples.select(sample_id=pl.int_range(pl.len()), patient_id="patient", site="site", **labels)
    samples.write_parquet(root / "samples.parquet")
    modalities = [m for m in MODALITIES if m.kind in ("vector", "codes")]
    for modality in modalities:
        records.elements[modality.name].rename({"sample": "sample_id"}).write_parquet(root / f"{modality.name}.parquet")
    described = {
        "dataset": "synthetic",
        "tasks": {task.name: {"parent": task.parent} if task.parent else None for task in TASKS},
        "modalities": {m.name: {"kind": m.kind} for m in modalities},
    }
    (root / "schema.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return root


@dataclass(frozen=True)
class Finished:
    """What a run of `mmnar` left.

    Args:
        status: Its exit status, negative for a signal.
        out: What it printed.
        trace: Its steps and validations, see `command_server.py`.
    """

    status: int
    out: str
    trace: list[dict[str, Any]]


class CommandServer:
    """Runs `mmnar` in a process of its own each time, see `command_server.py`."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"COLUMNS": "200"},
        )
        self._answer()

    def __call__(self, *arguments: str | Path, **options: Any) -> Finished:
        """Run one command. Options are `end`, `environment`, `strict` (warnings are errors)."""
        return self.together([{"arguments": [str(a) for a in arguments], **options}])[0]

    def together(self, processes: list[dict[str, Any]]) -> list[Finished]:
        """Run several at once."""
        with tempfile.TemporaryDirectory() as folder:
            for k, process in enumerate(processes):
                process |= {"out": f"{folder}/out{k}", "trace": f"{folder}/trace{k}"}
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(processes) + "\n")
            self._server.stdin.flush()
            return [self._finished(s, p) for s, p in zip(self._answer(), processes, strict=True)]

    def _finished(self, status: int, process: dict[str, Any]) -> Finished:
        trace = Path(process["trace"])
        lines = trace.read_text().splitlines() if trace.exists() else []
        return Finished(status, Path(process["out"]).read_text(), [json.loads(line) for line in lines])

    def _answer(self) -> list[Any]:
        assert self._server.stdout is not None
        answer: list[Any] = json.loads(self._server.stdout.readline())
        return answer

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(60)


@pytest.fixture(scope="session")
def mmnar() -> Iterator[CommandServer]:
    """`mmnar("fit", "--config", …)` runs a command and returns `Finished(status, out, trace)`."""
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(mmnar: CommandServer, own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after fit, validate, test and predict with `tests/conf/tables.yaml`; look, but don't touch.

    Its stores are in `../stores`.
    """
    folder = tmp_path_factory.mktemp("trained")
    config = Path(__file__).with_name("conf") / "tables.yaml"
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", folder / "stores")
    for command in ("fit", "validate", "test", "predict"):
        done = mmnar(command, "--config", config, *data, "--run_dir", folder / "run")
        assert done.status == 0, done.out
    return folder / "run"
