"""Overlap, the value of each modality, policy shift: mmnar evaluate --run_dir runs/eicu --as-if site=X"""

from __future__ import annotations

import json
import os
from argparse import ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmnar_lightning import _terminal


def run(arguments: Sequence[str]) -> int:
    """Evaluate the test split of a run by availability; writes evaluation.json and evaluation.md into its folder."""
    from mmnar_lightning import __version__
    from mmnar_lightning.commands._config import load_plugins, parsing_problem
    from mmnar_lightning.commands._hidden import predict_hidden
    from mmnar_lightning.evaluation.availability_report import AvailabilitySettings, evaluate_availability
    from mmnar_lightning.evaluation.policy_shift import AsIf
    from mmnar_lightning.evaluation.shift_report import evaluate_shift
    from mmnar_lightning.module import MultimodalOutcomeModule

    _terminal.begin()
    load_plugins()
    parser = _parser()
    try:
        config, checkpoint = _parsed(parser, arguments)
        names = AvailabilitySettings.__dataclass_fields__
        settings = AvailabilitySettings(**{name: config[name] for name in names})
        as_if = None if config.as_if is None else AsIf.parse(config.as_if)
        data = parser.instantiate_classes(config).data
    except (ArgumentError, ValueError) as error:
        raise ValueError(parsing_problem(error)) from error
    model = MultimodalOutcomeModule.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu")
    _check_splits(data, checkpoint)
    if as_if is not None:
        # before anything is predicted
        as_if.rows(data.records.samples)
    predicted = predict_hidden(data, model, config.trainer or {}, settings.probabilities)
    manifest = data.records.manifest
    report = {
        "version": __version__,
        "checkpoint": checkpoint.name,
        "dataset": manifest["dataset"],
        "cohort": manifest["cohort"],
        "probabilities": settings.probabilities,
        "groups": settings.groups,
        "availability": evaluate_availability(data, model.schema, predicted, settings),
        "as_if": None if as_if is None else evaluate_shift(data, model.schema, predicted, as_if, settings),
    }
    _tell(report, Path(config.run_dir))
    if as_if is not None and config.train_weights is not None:
        _write_weights(data, model.schema, as_if, settings, Path(config.train_weights))
    return 0


def _write_weights(data: Any, schema: Any, as_if: Any, settings: Any, path: Path) -> None:
    import numpy as np
    import polars as pl

    from mmnar_lightning.evaluation.shift_report import training_shift_weights

    weights = training_shift_weights(data, schema, as_if, settings)
    rows = np.flatnonzero(np.isfinite(weights))
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    frame = pl.DataFrame({"sample": rows, "weight": weights[rows]})
    frame.write_parquet(parts, metadata={"store": data.records.fingerprint, "as_if": str(as_if)})
    parts.chmod(0o600)
    parts.replace(path)


def _parsed(parser: Any, arguments: Sequence[str]) -> tuple[Any, Path]:
    """Lay the flags over the run's own config, and find its checkpoint."""
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run_dir", type=Path)
    first.add_argument("--ckpt_path", type=Path)
    named = first.parse_known_args(list(arguments))[0]
    folder = named.run_dir
    if folder is None:
        # says what is missing, or helps
        parser.parse_args(list(arguments))
        raise ValueError("give the folder of the run: --run_dir")
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.yaml in it; fit first, or give another --run_dir")
    config = parser.parse_args(["--config", str(saved), *arguments])
    if config.train_weights is not None and config.as_if is None:
        raise ValueError("--train_weights needs --as-if: whose availability the weights are to take over")
    kept = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    # a run that was continued names the checkpoint it went on from in its config; that is not the one meant
    checkpoint: Path = named.ckpt_path or next((p for p in kept if p.is_file()), kept[0])
    if not checkpoint.is_file():
        raise ValueError(f"no checkpoint {checkpoint}; fit first, or give --ckpt_path")
    config.data.init_args.schema_of = str(checkpoint)
    config.data.init_args.predict_splits = ["test"]
    return config, checkpoint


def _parser() -> Any:
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
    from jsonargparse import ArgumentParser as Parser

    from mmnar_lightning.evaluation.availability_report import AvailabilitySettings
    from mmnar_lightning.records import RecordDataModule

    parser = Parser(prog="mmnar evaluate", description=__doc__, exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Settings laid over those of the run")
    parser.add_argument("--run_dir", type=str, required=True, help="Folder of a run that fit has finished")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint; the run's best if not given")
    parser.add_argument(
        "--as-if", type=str | None, default=None, help="Whose availability to take over: site=X, year<=2014"
    )
    parser.add_argument(
        "--train_weights",
        type=str | None,
        default=None,
        help="Parquet file to write weights of training samples to, for --as-if (sample: row of the store, weight)",
    )
    parser.add_class_arguments(AvailabilitySettings)
    parser.add_subclass_arguments(RecordDataModule, "data", required=True)
    # where it runs is taken from the config's trainer; the model is the checkpoint's
    for section in ("trainer", "model", "seed_everything", "resume", "weights_only"):
        parser.add_argument(f"--{section}", type=Any, default=None, help="as in the run's config")
    return parser


def _check_splits(data: Any, checkpoint: Path) -> None:
    """Refuse what would test on training patients, as `mmnar test` does."""
    import torch

    stored = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)
    trained_on = stored.get(type(data).__qualname__)
    if isinstance(trained_on, Mapping):
        data.load_state_dict(dict(trained_on))


def _tell(report: Mapping[str, Any], folder: Path) -> None:
    from rich.table import Table

    from mmnar_lightning.evaluation.availability_tables import markdown, sections

    _write(folder / "evaluation.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _write(folder / "evaluation.md", markdown(report))
    for section in sections(report):
        table = Table(title=section.title, caption=section.note, caption_justify="left")
        for name in section.header:
            table.add_column(name, overflow="fold")
        for row in section.rows:
            table.add_row(*row)
        _terminal.result(table)
    _terminal.result(f"all numbers: {folder / 'evaluation.json'}   tables: {folder / 'evaluation.md'}")


def _write(path: Path, text: str) -> None:
    parts = path.with_name(f".{path.name}.{os.getpid()}")
    parts.write_text(text, encoding="utf-8")
    parts.chmod(0o600)
    parts.replace(path)
