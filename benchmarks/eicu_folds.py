"""The network beside plain models and APACHE IVa, on five disjoint test folds of an eICU extract.

Run: ``python benchmarks/eicu_folds.py --root EXTRACT [--out FOLDER] [--config eicu] [FURTHER --data… --model… FLAGS]``.
Each fold is fitted with `mmnar fit --resume auto`, so an interrupted benchmark goes on where it was. The plain models
see the flattened records of the same samples: once the network's training patients (settings chosen on its val), once
all patients outside the test fold (scikit-learn's default settings). Writes the table as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmnar_eicu import EICUDataModule
from mmnar_lightning.__main__ import main as mmnar
from mmnar_lightning.evaluation import bootstrap_difference, bootstrap_interval
from mmnar_lightning.evaluation.flat import Flat, boosted_trees, flatten, linear_pipeline, logistic_regression
from mmnar_lightning.records import RecordDataset, RecordSchema, SplitSettings

FOLDS = 5
NETWORK = "network"


def network(fold: int, arguments: argparse.Namespace, further: list[str]) -> pl.DataFrame:
    """Fit on a fold and predict its test samples: `sample`, raw probability, rectified probability."""
    run = arguments.out / f"fold-{fold}"
    data = {"root": arguments.root, "store": arguments.out / "stores", "splits.test_fold": fold}
    flags = [word for name, value in data.items() for word in (f"--data.init_args.{name}", str(value))]
    flags += ["--run_dir", str(run), "--trainer.enable_progress_bar", "false", *further]
    for command in (["fit"], ["predict"]):
        extra = ["--resume", "auto"] if command == ["fit"] else ["--data.init_args.predict_splits", '["test"]']
        status = mmnar([*command, "--config", arguments.config, *flags, *extra])
        if status:
            raise SystemExit(status)
    frame = pl.read_parquet(run / "predictions.parquet")
    task = arguments.task
    return frame.select("sample", network=f"{task}/raw", rectified=f"{task}/rectified")


def plain(fold: int, arguments: argparse.Namespace, further: list[str]) -> pl.DataFrame:
    """Fit logistic regression and boosted trees on a fold, twice: `sample`, `patient`, label and probabilities."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegressionCV

    options = dict(zip(further[::2], further[1::2], strict=True))
    delay = float(options.get("--data.init_args.lab_delay", 0))
    seed = int(options.get("--data.init_args.splits.split_seed", 0))
    splits = SplitSettings(test_fold=fold, split_seed=seed)
    data = EICUDataModule(arguments.root, arguments.out / "stores", splits=splits, lab_delay=delay)
    schema = RecordSchema.from_dict(data.schema)
    task = schema.task_names.index(arguments.task)

    def flat(*splits: str) -> Flat:
        return flatten(RecordDataset(data.records, schema, data.samples_of(*splits)))

    train, val, test = flat("train"), flat("val"), flat("test")
    whole = flat("train", "val", "calibration", "conformal")
    known = ~np.isnan(whole.targets[:, task])
    scaled = linear_pipeline(
        LogisticRegressionCV(
            Cs=10.0 ** np.arange(-5, 1), l1_ratios=(0,), scoring="roc_auc", max_iter=2000, use_legacy_attributes=False
        )
    )
    models = {
        "logistic regression": logistic_regression(train, val, task),
        "boosted trees": boosted_trees(train, val, task),
        "logistic regression, all": scaled.fit(whole.values[known], whole.targets[known, task]),
        "boosted trees, all": HistGradientBoostingClassifier(random_state=0, early_stopping=False).fit(
            whole.values[known], whole.targets[known, task]
        ),
    }
    return pl.DataFrame(
        {
            "sample": test.sample,
            "patient": data.records.samples["patient"].gather(test.sample),
            "stay": data.records.samples["id/patientunitstayid"].gather(test.sample),
            "fold": np.full(len(test.sample), fold),
            "label": test.targets[:, task],
            **{name: model.predict_proba(test.values)[:, 1] for name, model in models.items()},
        }
    )


def apache(root: Path) -> pl.DataFrame:
    """APACHE IVa's predicted hospital mortality by unit stay; −1 stands for none."""
    path = next(p for p in root.iterdir() if p.name.lower().startswith("apachepatientresult"))
    frame = pl.read_csv(path, columns=["patientunitstayid", "apacheversion", "predictedhospitalmortality"])
    frame = frame.filter((pl.col("apacheversion") == "IVa") & (pl.col("predictedhospitalmortality") >= 0))
    return frame.select(stay="patientunitstayid", apache="predictedhospitalmortality").unique("stay", keep="any")


def compare(frame: pl.DataFrame, methods: list[str], metric: str) -> list[dict[str, Any]]:
    """Metric of each method, averaged over folds, and the network's difference to it, with patient bootstrap."""
    label, patient, fold = (frame[name].to_numpy() for name in ("label", "patient", "fold"))
    rows = []
    for name in methods:
        p = frame[name].to_numpy()
        row: dict[str, Any] = {"method": name, "samples": len(p), "events": int(label.sum())}
        own = bootstrap_interval(metric, p, label, patient, fold=fold)
        row[metric] = [own.estimate, own.low, own.high]
        if name != NETWORK:
            paired = bootstrap_difference(metric, frame[NETWORK].to_numpy(), p, label, patient, fold=fold)
            row["network minus this"] = [paired.estimate, paired.low, paired.high]
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], metric: str) -> str:
    """The rows as a Markdown table."""
    lines = [f"| method | samples (events) | {metric} | network minus this |", "|---|---|---|---|"]
    for row in rows:
        cells = [_interval(row[metric]), _interval(row.get("network minus this"))]
        lines.append(f"| {row['method']} | {row['samples']} ({row['events']}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with the raw eICU tables")
    parser.add_argument("--out", type=Path, default=Path("runs/eicu-folds"))
    parser.add_argument("--config", default="eicu")
    parser.add_argument("--task", default="mortality_hospital")
    parser.add_argument("--name", default="eicu_folds", help="name of the files in benchmarks/results")
    arguments, further = parser.parse_known_args()
    frames = []
    for fold in range(FOLDS):
        frames.append(plain(fold, arguments, further).join(network(fold, arguments, further), on="sample", how="left"))
    frame = pl.concat(frames).filter(pl.col("label").is_not_nan())
    methods = ["network", "rectified", "logistic regression", "boosted trees"]
    methods += ["logistic regression, all", "boosted trees, all"]
    scored = frame.join(apache(arguments.root), on="stay", how="inner")
    result = {
        "command": f"python benchmarks/eicu_folds.py --root … {' '.join(further)}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("mmnar-lightning", "torch", "lightning", "scikit-learn")},
        "everybody": {metric: compare(frame, methods, metric) for metric in ("auroc", "auprc", "brier")},
        "with APACHE IVa": {"auroc": compare(scored, [*methods, "apache"], "auroc")},
        "folds": {
            name: [
                bootstrap_interval("auroc", *(part[c].to_numpy() for c in (name, "label", "patient")), draws=1).estimate
                for part in frame.partition_by("fold", maintain_order=True)
            ]
            for name in methods
        },
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for title, tables in (("all samples", result["everybody"]), ("samples with APACHE IVa", result["with APACHE IVa"])):
        for metric, rows in tables.items():  # type: ignore[attr-defined]
            print(f"\n{arguments.task}, {title}\n\n{markdown(rows, metric)}")


if __name__ == "__main__":
    main()
