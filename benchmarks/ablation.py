"""What each part of the method is worth, on simulated patients for whom the best possible prediction is known.

Run: ``python benchmarks/ablation.py [--out FOLDER] [--seeds 5] [--samples 8000] [--only NAME …] [--processes 1]``.
Every overlay in `configs/ablation` is laid over `configs/simulated.yaml`, with the same data, splits and seeds: linear
and non-linear views; availability completely at random, at random and not at random. A run that is there is kept, so
an interrupted benchmark goes on where it was. Writes the table as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measuring import RESULTS, machine, save
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted(path.stem for path in (ROOT / "configs" / "ablation").glob("*.yaml"))
FORMS = ("linear", "nonlinear")
MECHANISMS = ("mcar", "mar", "mnar")
DRAWS = 2000
# a worker for each core, one thread each: small networks gain nothing from more
os.environ.update(OMP_NUM_THREADS="1", POLARS_MAX_THREADS="1")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One data set."""

    form: str
    mechanism: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.form}-{self.mechanism}-{self.seed}"

    def flags(self, arguments: argparse.Namespace) -> list[str]:
        """Say which data, on the command line."""
        data = {
            "form": self.form,
            "mechanism.kind": self.mechanism,
            "data_seed": self.seed,
            "samples": arguments.samples,
            "store": arguments.out / "stores",
        }
        return [word for name, value in data.items() for word in (f"--data.init_args.{name}", str(value))]


def silence(folder: Path) -> None:
    """Let a worker say what it has to say in a file of its own, on one thread."""
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def train(case: Case, method: str, arguments: argparse.Namespace) -> None:
    """Fit and predict; nothing is repeated that is there.

    Raises:
        RuntimeError: If a command fails; its log says why.
    """
    from mmnar_lightning.__main__ import main as mmnar

    run = arguments.out / case.name / method
    if (run / "predictions.parquet").is_file():
        return
    overlay = [] if method == "default" else ["--config", f"ablation/{method}"]
    common = ["--config", "simulated", *overlay, *case.flags(arguments), "--run_dir", str(run)]
    common += ["--seed_everything", str(case.seed), "--trainer.enable_progress_bar", "false"]
    common += ["--trainer.enable_model_summary", "false"]
    for command in (["fit", *common, "--resume", "auto"], ["predict", *common]):
        if mmnar(command):
            raise RuntimeError(f"{command[0]} {method} on {case.name} failed, see {arguments.out}/worker-*.log")


def known(case: Case, arguments: argparse.Namespace) -> pl.DataFrame:
    """Test samples with labels and the best attainable probabilities."""
    from mmnar_lightning.simulation import Mechanism
    from mmnar_simulated import SimulatedDataModule

    path = arguments.out / case.name / "bayes.parquet"
    if not path.is_file():
        mechanism = Mechanism(case.mechanism, 1.5)  # type: ignore[arg-type]
        data = SimulatedDataModule(
            arguments.out / "stores",
            samples=arguments.samples,
            mechanism=mechanism,
            form=case.form,  # type: ignore[arg-type]
            data_seed=case.seed,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        data.bayes("test").write_parquet(path)
    return pl.read_parquet(path)


def scores(frame: pl.DataFrame, column: str, tasks: list[str], weights: NDArray[np.int64] | None = None) -> Array:
    """AUROC and log loss of a column of probabilities, mean over tasks: [2]."""
    from sklearn.metrics import log_loss, roc_auc_score

    found = []
    for task in tasks:
        y, p = frame[f"{task}/target"].to_numpy(), frame[f"{task}/{column}"].to_numpy()
        found.append([roc_auc_score(y, p, sample_weight=weights), log_loss(y, p, sample_weight=weights)])
    mean: Array = np.mean(found, axis=0)
    return mean


def collect(case: Case, methods: list[str], arguments: argparse.Namespace) -> tuple[pl.DataFrame, list[str]]:
    """Predictions of all methods on the test samples of a case, beside the truth."""
    frame = known(case, arguments)
    tasks = [c.removesuffix("/target") for c in frame.columns if c.endswith("/target")]
    for method in methods:
        path = arguments.out / case.name / method / "predictions.parquet"
        frame = frame.join(recalibrated(pl.read_parquet(path), tasks, method), on="sample", validate="1:1")
    return frame, tasks


def recalibrated(predictions: pl.DataFrame, tasks: list[str], method: str) -> pl.DataFrame:
    """Probabilities of test after a global bias and temperature from calibration, which every method gets."""
    from sklearn.linear_model import LogisticRegression

    fitted = predictions.filter(pl.col("split") != "test")
    tested = predictions.filter(pl.col("split") == "test")
    columns = [tested["sample"]]
    for task in tasks:
        logit = [np.log(p / (1 - p))[:, None] for p in (f[f"{task}/raw"].to_numpy() for f in (fitted, tested))]
        model = LogisticRegression(C=np.inf).fit(logit[0], fitted[f"{task}/target"].to_numpy())
        columns.append(pl.Series(f"{task}/{method}", model.predict_proba(logit[1])[:, 1]))
    return pl.DataFrame(columns)


def table(cases: list[Case], methods: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Difference of every method to the default: seeds and, inside each, patients are resampled together."""
    columns = [*methods, "bayes", "bayes_pattern"]
    generator = np.random.default_rng(0)
    point: dict[tuple[str, str], list[Array]] = {}
    drawn: dict[tuple[str, str], list[Array]] = {}
    for case in cases:
        frame, tasks = collect(case, methods, arguments)
        weights = [
            np.bincount(generator.integers(len(frame), size=len(frame)), minlength=len(frame))
            for _ in range(arguments.draws)
        ]
        values = np.stack([scores(frame, c, tasks) for c in columns])
        resampled = np.stack([[scores(frame, c, tasks, w) for c in columns] for w in weights])
        point.setdefault((case.form, case.mechanism), []).append(values)
        drawn.setdefault((case.form, case.mechanism), []).append(resampled)
    rows = []
    groups = {**{"/".join(key): [key] for key in point}, "all": list(point)}
    for group, keys in groups.items():
        values = np.concatenate([np.stack(point[key]) for key in keys])  # [cases, methods, 2]
        resampled = np.concatenate([np.stack(drawn[key]) for key in keys])  # [cases, draws, methods, 2]
        chosen = generator.integers(len(values), size=(DRAWS, len(values)))
        patient = generator.integers(resampled.shape[1], size=chosen.shape)
        default = columns.index("default")
        for j, name in enumerate(columns):
            row: dict[str, Any] = {"data": group, "method": name, "cases": len(values)}
            for k, metric in enumerate(("auroc", "log_loss")):
                row[metric] = float(values[:, j, k].mean())
                paired = resampled[chosen, patient, j, k] - resampled[chosen, patient, default, k]
                low, high = np.quantile(paired.mean(1), [0.025, 0.975])
                row[f"{metric} minus default"] = [
                    float((values[:, j, k] - values[:, default, k]).mean()),
                    float(low),
                    float(high),
                ]
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows over all data as a Markdown table."""
    lines = ["| method | AUROC | minus default | log loss | minus default |", "|---|---|---|---|---|"]
    for row in rows:
        if row["data"] == "all":
            cells = [f"{row[m]:.4f} | {_interval(row[f'{m} minus default'])}" for m in ("auroc", "log_loss")]
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    return f"{values[0]:+.4f} ({values[1]:+.4f} to {values[2]:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--draws", type=int, default=50, help="bootstrap draws of patients inside each case")
    parser.add_argument("--only", nargs="*", default=OVERLAYS, help="overlays to run; all without it")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    methods = ["default", *arguments.only]
    cases = [Case(*case) for case in product(FORMS, MECHANISMS, range(arguments.seeds))]
    for case in cases:
        known(case, arguments)
    # a seed of all cases and methods before the next: what is there after an interruption is a whole smaller study
    jobs = sorted(product(cases, methods), key=lambda job: job[0].seed)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn, initializer=silence, initargs=(arguments.out,)) as pool:
        waiting = [pool.submit(train, *job, arguments) for job in jobs]
        for done, job in enumerate(as_completed(waiting), start=1):
            job.result()
            sys.stderr.write(f"\r{done} of {len(jobs)} runs")
    rows = table(cases, methods, arguments)
    command = f"python benchmarks/ablation.py --seeds {arguments.seeds} --samples {arguments.samples}"
    command += f" --draws {arguments.draws} --only {' '.join(arguments.only)}"
    packages = ("torch", "lightning", "scikit-learn")
    save(RESULTS / "ablation.json", {"command": command, "rows": rows}, packages, machine())
    (RESULTS / "ablation.md").write_text(markdown(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
