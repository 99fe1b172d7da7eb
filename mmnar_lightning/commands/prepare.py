"""Make the record store of a config's data: mmnar prepare --config configs/eicu.yaml"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from mmnar_lightning import _terminal


def run(arguments: Sequence[str]) -> int:
    """Prepare the store of the `data` section of a config; further sections are not looked at."""
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    from mmnar_lightning.commands._config import load_plugins, parsing_problem, resolve_configs
    from mmnar_lightning.records import RecordDataModule

    _terminal.begin()
    load_plugins()
    parser = ArgumentParser(prog="mmnar prepare", description=__doc__, exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="The config that fit takes")
    parser.add_subclass_arguments(RecordDataModule, "data", required=True)
    for section in ("seed_everything", "trainer", "model", "run_dir", "resume", "ckpt_path", "weights_only"):
        parser.add_argument(f"--{section}", type=Any, default=None, help="not used here")
    try:
        data = parser.instantiate_classes(parser.parse_args(resolve_configs(arguments))).data
    except (ArgumentError, ValueError) as error:
        raise ValueError(parsing_problem(error)) from error
    path = data.prepare_store()
    _terminal.result(str(path))
    return 0
