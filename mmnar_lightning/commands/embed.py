"""Run frozen encoders over a store once, for every later run: mmnar embed --config configs/mimic4.yaml"""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from mmnar_lightning import _terminal

# what a config of fit holds and embedding has no use for
UNUSED = ("run_dir", "resume", "ckpt_path", "weights_only")


def run(arguments: Sequence[str]) -> int:
    """Embed what the frozen encoders of a config read; features that are there already are left as they are."""
    import yaml
    from lightning.pytorch import seed_everything

    from mmnar_lightning._parts import build_part
    from mmnar_lightning.commands._config import load_plugins, parsing_problem, resolve_configs
    from mmnar_lightning.commands._embedding import embed
    from mmnar_lightning.module import MultimodalOutcomeModule

    _terminal.begin()
    load_plugins()
    resolved = resolve_configs(arguments)
    # Lightning starts the other processes of a machine by repeating sys.argv
    sys.argv = [sys.argv[0], "embed", *resolved, *_terminal.quiet_flag()]
    parser = _parser()
    try:
        config = parser.parse_args(resolved)
        seed = config.pop("seed_everything")
        if seed is not False:
            # as fit: a backbone whose weights are drawn is then drawn alike
            seed_everything(None if seed is True else seed, workers=True)
        plain = yaml.safe_load(parser.dump(config, skip_none=False))
        built = parser.instantiate_classes(config)
        model = build_part(plain["model"], MultimodalOutcomeModule, built.data.schema)
    except (ArgumentError, ValueError) as error:
        raise ValueError(parsing_problem(error)) from error
    for folder in embed(built.data, model, built.trainer, dtype=built.dtype, shard_size=built.shard_size):
        _terminal.result(str(folder))
    return 0


def _parser() -> Any:
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    import mmnar_lightning.callbacks  # noqa: F401 - a config names them by their bare names
    from mmnar_lightning.encoders.features import Dtype
    from mmnar_lightning.module import MultimodalOutcomeModule
    from mmnar_lightning.records import RecordDataModule

    parser = LightningArgumentParser(prog="mmnar embed", description=__doc__, exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="The config that fit takes")
    parser.add_lightning_class_args(Trainer, "trainer")
    # its parts are built from the plain config, as from a checkpoint
    parser.add_subclass_arguments(
        MultimodalOutcomeModule, "model", skip={"schema"}, instantiate=False, required=True, fail_untyped=False
    )
    parser.add_subclass_arguments(RecordDataModule, "data", required=True)
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Seed, as fit takes it")
    parser.add_argument("--dtype", type=Dtype, default="float32", help="Type the features are stored in")
    parser.add_argument(
        "--shard_size", type=int, default=1024, help="Elements a file: each device loses that many where it is killed"
    )
    for name in UNUSED:
        parser.add_argument(f"--{name}", type=Any, default=None, help="not used here")
    return parser
