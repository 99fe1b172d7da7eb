"""What a notebook needs beside the model: the commands as functions, in this process, and quiet."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from mmnar_lightning import _terminal

if TYPE_CHECKING:
    from mmnar_lightning.module import MultimodalOutcomeModule
    from mmnar_lightning.predictor import Predictor
    from mmnar_lightning.records import RecordDataModule

# of a fit in a notebook where nothing else is said: it runs here, and draws nothing over the page
QUIET = {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
SECTIONS = {"data": "data.init_args", "model": "model.init_args", "trainer": "trainer"}
PREFIXES = {"raw": "", "recalibrated": "recalibrated/", "rectified": "rectified/", "delta_only": "delta_only/"}


@dataclass(frozen=True)
class Run:
    """A run's folder, and what lies in it.

    Args:
        run_dir: The folder.
    """

    run_dir: Path

    @cached_property
    def predictor(self) -> Predictor:
        """The model of the best checkpoint, as `load_predictor` returns it."""
        from mmnar_lightning.predictor import load_predictor

        return load_predictor(self.run_dir)

    @property
    def module(self) -> MultimodalOutcomeModule:
        """The model of the best checkpoint, in evaluation mode, on the CPU."""
        return self.predictor.module

    def metrics(self, stage: str = "val") -> pl.DataFrame:
        """Return the metrics of each task, from ``metrics-{stage}.json``.

        Args:
            stage: `val` or `test`.

        Returns:
            `task`, `probabilities` (raw, recalibrated, rectified; after a test also delta_only, what availability alone
            predicts), `metric`, `estimate`, and `low` and `high` where there is an interval.

        Raises:
            ValueError: If the stage has no metrics yet.
        """
        path = self.run_dir / f"metrics-{stage}.json"
        if not path.is_file():
            raise ValueError(f"{self.run_dir} has no {path.name} yet")
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (task, version, name.removeprefix(start), value, found.get(f"{name}/low"), found.get(f"{name}/high"))
            for task in self.module.schema.task_names
            for version, prefix in PREFIXES.items()
            for name, value in found.items()
            if name.startswith(start := f"{prefix}{task}/") and "/" not in name.removeprefix(start)
        ]
        ends = dict.fromkeys(("estimate", "low", "high"), pl.Float64)
        names = {"task": pl.String, "probabilities": pl.String, "metric": pl.String}
        return pl.DataFrame(rows, schema={**names, **ends}, orient="row")

    def test(self) -> pl.DataFrame:
        """Test the best checkpoint, as `mmnar test` does, and return the metrics."""
        self._again("test")
        return self.metrics("test")

    def predict(self) -> pl.DataFrame:
        """Predict with the best checkpoint, as `mmnar predict` does, and return ``predictions.parquet``."""
        self._again("predict")
        return pl.read_parquet(self.run_dir / "predictions.parquet")

    def _again(self, command: str) -> None:
        _command([command, "--config", str(self.run_dir / "config.yaml"), "--run_dir", str(self.run_dir)])


def datamodule(name: str, **options: Any) -> RecordDataModule:
    """Build the datamodule of an installed plugin.

    Args:
        name: Its name: `eicu`, `mimic4`, `meds`, `simulated`, `tables`, or that of your own.
        options: Its arguments, see *Data sources*.

    Raises:
        ValueError: If no plugin has that name; lists those there are.
    """
    from mmnar_lightning.records import RecordDataModule

    built = _plugin("datamodule", name)(**options)
    if not isinstance(built, RecordDataModule):
        raise ValueError(f"the plugin {name!r} gives no RecordDataModule")
    return built


def _plugin(kind: str, name: str) -> Any:
    from mmnar_lightning.commands._config import plugins

    known = plugins(kind)
    if name not in known:
        raise ValueError(f"no {kind} {name!r}; there are: {', '.join(known) or 'none'}")
    return known[name].load()


def simulate(name: str, folder: Path | str, *, patients: int = 1000, seed: int = 0, **options: Any) -> Path:
    """Write a simulated raw extract with known missingness, as `mmnar simulate` does.

    Args:
        name: Name of the simulator: `eicu`, `mimic4`, `meds`.
        folder: A new or an empty folder.
        patients: How many people.
        seed: Decides about everything that is drawn.
        options: Its further arguments.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such simulator; lists those there are.
    """
    _plugin("simulator", name)(Path(folder), patients=patients, seed=seed, **{"progress": False, **options})
    return Path(folder)


def fit(config: str | Path | Sequence[str | Path], *, run_dir: Path | str, **overrides: Any) -> Run:
    """Train, as `mmnar fit` does, with the same configs and rules, in this process.

    Keyword arguments lie over the config: `data`, `model` and `trainer` are dicts of their arguments
    (``data={"root": "extract"}``), everything else is a flag of its own (``seed_everything=1``, ``resume="auto"``).

    Args:
        config: A file, the name of a config that ships, or several of which the later wins.
        run_dir: Folder of the run, which must not hold one yet, unless ``resume="auto"``.
        overrides: What differs from the config.

    Returns:
        The run.

    Raises:
        ValueError: If the config, an override or the data are wrong; says how, in one line.
    """
    configs = [config] if isinstance(config, (str, Path)) else list(config)
    given = dict(overrides)
    given["trainer"] = QUIET | dict(given.get("trainer", {}))
    flags: list[str] = []
    for section, values in given.items():
        if section in SECTIONS:
            flags += [f"--{SECTIONS[section]}.{name}={_word(value)}" for name, value in values.items()]
        else:
            flags.append(f"--{section}={_word(values)}")
    named = [word for one in configs for word in ("--config", str(one))]
    _command(["fit", *named, *flags, f"--run_dir={run_dir}"])
    return Run(Path(run_dir))


def report(run_dir: Path | str | Run, out: Path | str | None = None) -> Path:
    """Write the HTML report of a run, as `mmnar report` does.

    Args:
        run_dir: A run, or its folder.
        out: The file; None writes ``report.html`` into the run's folder.

    Returns:
        The file.

    Raises:
        ValueError: If the run has nothing to report yet.
    """
    from mmnar_lightning.commands.report import run

    folder = run_dir.run_dir if isinstance(run_dir, Run) else Path(run_dir)
    path = folder / "report.html" if out is None else Path(out)
    with _quietly():
        run([str(folder), "--out", str(path)])
    return path


def _word(value: Any) -> str:
    """A value as on a command line."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=str)


def _command(arguments: list[str]) -> None:
    """Run one of Lightning's commands; it leaves nothing behind in this process but what it wrote."""
    from mmnar_lightning.cli import run

    before = list(sys.argv)
    with _quietly():
        try:
            # Lightning would repeat these to start further processes
            sys.argv = ["mmnar"]
            run(arguments)
        finally:
            sys.argv = before


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Let a command say errors alone, as with ``--quiet``, and no result: what it returns says that here."""
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric", "mmnar_lightning")]
    levels, handlers, was = [one.level for one in loggers], list(loggers[0].handlers), _terminal.is_quiet()
    _terminal.set_quiet(True)
    try:
        with _hidden_output(), warnings.catch_warnings():
            yield
    finally:
        _terminal.set_quiet(was)
        loggers[0].handlers = handlers
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _hidden_output() -> contextlib.AbstractContextManager[Any]:
    """Hide what is printed; and in a notebook what is displayed, which is where tables go there."""
    shell: Any = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:
        return contextlib.redirect_stdout(io.StringIO())
    hidden: contextlib.AbstractContextManager[Any] = shell.utils.capture.capture_output(stderr=False)
    return hidden


__all__ = ["Run", "datamodule", "fit", "report", "simulate"]
