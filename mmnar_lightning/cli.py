"""`mmnar fit | validate | test | predict`: LightningCLI, with a fixed folder for each run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from mmnar_lightning import __version__, _terminal
from mmnar_lightning.callbacks import AssignmentWeights, AtomicCheckpointIO, SampleWeights, finish
from mmnar_lightning.callbacks.epoch_lines import EpochLines
from mmnar_lightning.commands._config import load_plugins, parsing_problem, resolve_configs
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import RecordDataModule

log = logging.getLogger(__name__)

# what may differ between a run and its continuation: where and how it runs, not what is learned from what
FREE_ON_RESUME: tuple[str, ...] = (
    "trainer",
    "run_dir",
    "resume",
    "ckpt_path",
    "config",
    "data.init_args.root",
    "data.init_args.store",
)
# callbacks that are part of what is learned all the same
WEIGHTING = (AssignmentWeights.__name__, SampleWeights.__name__)
FREE_ON_RESUME += ("data.init_args.workers", "data.init_args.predict_splits", "weights_only")


class SaveRunConfig(SaveConfigCallback):
    """Writes the config into the run's folder, whole or not at all: by it a continuation is known as one."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it beside its place and rename it; Lightning calls this on one process."""
        path = Path(self.config["run_dir"]) / self.config_filename
        parts = path.with_name(f".{path.name}.{os.getpid()}")
        parts.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
        parts.replace(path)


class MultimodalCLI(LightningCLI):
    """LightningCLI with `--run_dir` and `--resume`, and the schema linked from the data to the model.

    Who wins: in `fit` the config and its flags do, and a checkpoint brings weights, optimiser and progress; a
    continuation whose config differs from the run's in data, model or seed is refused. In `validate`, `test` and
    `predict` the checkpoint's model and schema do, and what the config says of the model is ignored with a warning.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's folder, and link what the data hold to the model."""
        parser.add_argument(
            "--run_dir", type=str, default="runs/default", help="Folder of the run: config, logs, checkpoints"
        )
        parser.add_argument(
            "--resume", type=str, default="never", help="fit: 'auto' continues the run in run_dir or starts it"
        )
        parser.link_arguments("data.schema", "model.init_args.schema", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would lay the checkpoint's settings over flags without a word; see the class for who wins here
        return

    @property
    def _run_dir(self) -> Path:
        return Path(self._get(self.config, "run_dir"))

    def before_instantiate_classes(self) -> None:
        """Decide which checkpoint is used, and where things are written."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        self.save_config_kwargs = {"save_to_log_dir": False}
        if self.subcommand == "fit":
            self._continue_or_start(config)
        else:
            self._use_checkpoint(config)
            self.save_config_kwargs["config_filename"] = f"config-{self.subcommand}.yaml"

    def _continue_or_start(self, config: Any) -> None:
        if config.resume not in ("auto", "never"):
            raise ValueError(f"--resume {config.resume!r} is not one of auto, never")
        saved, last = self._run_dir / "config.yaml", self._run_dir / "checkpoints" / "last.ckpt"
        if not saved.is_file() and not last.is_file():
            return
        if config.resume == "never":
            failed = "" if last.is_file() else " (it has no checkpoint: remove it if the fit that made it has failed)"
            raise ValueError(
                f"{self._run_dir} holds a run; --resume auto continues it, another --run_dir starts one{failed}"
            )
        if saved.is_file():
            now = yaml.safe_load(self._parser("fit").dump(config, skip_none=False))
            before = yaml.safe_load(saved.read_text(encoding="utf-8"))
            changed = sorted(_differences(before, now))
            if _weighting(before) != _weighting(now):
                changed.append("trainer.callbacks")
            if changed:
                raise ValueError(
                    f"{self._run_dir} holds a run with other settings ({', '.join(changed)}); "
                    "give the same ones to continue it, or another --run_dir"
                )
        if last.is_file():
            log.info("continuing the run in %s", self._run_dir)
            config.ckpt_path = str(last)

    def _use_checkpoint(self, config: Any) -> None:
        path = config.get("ckpt_path")
        if path in (None, "best", "last"):
            names = (path,) if path else ("best", "last")
            kept = [self._run_dir / "checkpoints" / f"{name}.ckpt" for name in names]
            path = next((str(p) for p in kept if p.is_file()), None)
        if path is None or not Path(path).is_file():
            raise ValueError(
                f"no checkpoint in {self._run_dir}/checkpoints; fit first, or give --ckpt_path or --run_dir"
            )
        if Path(path).name == "last.ckpt" and config.get("ckpt_path") is None:
            log.warning("there is no best.ckpt (no epoch after pretraining was validated); last.ckpt is used")
        config.ckpt_path = str(path)
        try:
            loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            stored = loaded["hyper_parameters"]
            finished = bool(loaded["state_dict"]["_extra_state"]["rectifier"]["choices"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is no checkpoint of mmnar") from error
        if Path(path).name == "best.ckpt" and not finished:
            log.warning(
                "the fit has not come to its end: best.ckpt has the rectifier of an epoch and no conformal sets; "
                "`mmnar fit --resume auto` finishes it"
            )
        class_path = stored.pop("_class_path", None) or f"{MultimodalOutcomeModule.__module__}.MultimodalOutcomeModule"
        init_args = {k: v for k, v in stored.items() if k not in ("_instantiator", "schema")}
        given = config.model.get("init_args", {})
        differing = [k for k, v in init_args.items() if k in given and _plain({k: given[k]}) != _plain({k: v})]
        if differing:
            warnings.warn(
                f"the checkpoint's model is used; ignored of the config: {', '.join(differing)}", stacklevel=2
            )
        parser = self._parser(self.subcommand)
        described = {"model": {"class_path": class_path, "init_args": init_args}}
        config.model = parser.parse_object(described, config, defaults=False).model
        config.data.init_args.schema_of = str(path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in ("validate", "test"):
            # Lightning would print every metric of every pattern; MetricSummary shows the ones to read
            given["verbose"] = False
        if subcommand == "predict":
            # PredictionWriter has them already
            given["return_predictions"] = False
        return given

    def after_fit(self) -> None:
        """Fit what is fitted once: the rectifier's ladder and the conformal sets, on the best checkpoint."""
        best = self._run_dir / "checkpoints" / "best.ckpt"
        if best.is_file():
            finish(self.trainer, self.model, self.datamodule, best)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer: everything it writes goes into `run_dir`, checkpoints whole or not at all."""
        trainer = self._get(self.config_init, "trainer", default={})
        kwargs.setdefault("default_root_dir", str(self._run_dir))
        if trainer.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(self._run_dir, name="", version="", default_hp_metric=False)
        plugins = trainer.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # this command line has been parsed by now, and is repeated for the processes of other devices
        sys.argv += _terminal.quiet_flag()
        if _terminal.shows_bars(stderr=False):
            return super().instantiate_trainer(**kwargs)
        return super().instantiate_trainer(**kwargs, **_without_bars(trainer))


def _without_bars(trainer: Any) -> dict[str, Any]:
    """Settings of a trainer that writes to no terminal: lines in place of bars, and with ``--quiet`` neither."""
    given = trainer.get("callbacks") or []
    callbacks = [c for c in (given if isinstance(given, list) else [given]) if not isinstance(c, ProgressBar)]
    if not _terminal.is_quiet():
        return {"callbacks": [*callbacks, EpochLines()], "enable_progress_bar": False}
    callbacks = [c for c in callbacks if not isinstance(c, ModelSummary)]
    return {"callbacks": callbacks, "enable_progress_bar": False, "enable_model_summary": False}


def _plain(value: Any) -> Any:
    """Reduce jsonargparse's namespaces and parts to comparable plain types (a part without settings is its class)."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    if isinstance(value, dict):
        kept = {k: _plain(v) for k, v in value.items() if v is not None}
        return {k: v for k, v in kept.items() if v != {}}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _weighting(config: dict[str, Any]) -> list[Any]:
    """The callbacks that weigh samples, with their settings."""
    callbacks = config["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return [c for c in callbacks if str(c.get("class_path", "")).rpartition(".")[2] in WEIGHTING]


def _differences(before: Any, after: Any, at: str = "") -> Iterable[str]:
    if at in FREE_ON_RESUME:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{at}.{key}".lstrip("."))
    elif before != after:
        yield at


def run(arguments: Sequence[str]) -> int:
    """Run one of Lightning's subcommands.

    Args:
        arguments: Subcommand first, as on the command line.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    _terminal.begin()
    load_plugins()
    # Lightning starts the other processes of a machine by repeating sys.argv
    sys.argv = [sys.argv[0], *resolve_configs(arguments)]
    try:
        MultimodalCLI(
            MultimodalOutcomeModule,
            RecordDataModule,
            SaveRunConfig,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"version": __version__, "exit_on_error": False},
        )
    except (ArgumentError, ValueError) as error:
        raise ValueError(parsing_problem(error)) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    return 0


__all__ = ["MultimodalCLI", "run"]
