"""Configs and plugins by name, for every command that takes `--config`."""

from __future__ import annotations

import logging
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

log = logging.getLogger(__name__)


def plugins(kind: str) -> dict[str, EntryPoint]:
    """What all installed plugins register as a datamodule, simulator or recogniser, by name.

    Args:
        kind: One of these words; the entry-point group is ``mmnar.<kind>s``.

    Raises:
        ValueError: If two plugins register the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"mmnar.{kind}s"):
        if found.setdefault(point.name, point).value != point.value:
            raise ValueError(
                f"two plugins register the {kind} {point.name!r}: {found[point.name].value}, {point.value}; "
                "uninstall one of them"
            )
    return dict(sorted(found.items()))


def load_plugins() -> None:
    """Import the datamodules of all installed plugins, so that a config can name them by their bare class name.

    Raises:
        ValueError: If two plugins register the same name.
    """
    for point in plugins("datamodule").values():
        try:
            point.load()
        except Exception as error:  # whatever somebody else's plugin raises must not take the others down
            log.warning("the plugin %r cannot be loaded: %s", point.name, error)


def config_path(given: str) -> str:
    """Resolve `--config NAME`: an existing file as it is, else a config that ships with the package.

    Raises:
        ValueError: If it is neither; lists the configs that ship.
    """
    if Path(given).is_file():
        return given
    package = Path(__file__).parent.parent
    shipped = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None)
    if shipped is None:
        raise ValueError(f"no config file {given!r}")
    for name in (given, f"{given}.yaml", given.removeprefix("configs/")):
        if (shipped / name).is_file():
            return str(shipped / name)
    known = sorted(p.stem for p in shipped.glob("*.yaml"))
    overlays = sorted(f"{p.name}/… ({len(list(p.glob('*.yaml')))})" for p in shipped.iterdir() if p.is_dir())
    raise ValueError(f"no config file {given!r}; those that ship: {', '.join([*known, *overlays])} in {shipped}")


def parsing_problem(error: ArgumentError | ValueError) -> str:
    """Say in one line what is wrong with a command line or config, out of all that jsonargparse tells."""
    # a value is held against every type of a union; what the types are called helps nobody
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Expected a path",
        "Given value",
    )
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    kept = dict.fromkeys(line for line in lines if line and not line.startswith(noise))
    told = re.sub(r"Type \S*Callable\[.*?\] expects a function or a callable class: ", "", " ".join(kept))
    told = re.sub(r"\. Got value: (Namespace|NestedArg)\(.*", "", told)
    if needed := re.search(r"arguments are required: (.*)", told):
        names = [name.rpartition(".")[2] for name in needed[1].split(", ")]
        if "run_dir" in names:
            return "--run_dir must be given: the folder of a run"
        return f"{' and '.join(names)} must be given, best by a configuration: --config eicu, mimic4, tables, or a file"
    if "unrecognized arguments" in told:
        return f"{told} (--help lists the options)"
    if accepted := re.fullmatch(r'Parser key "(\w+)": .*class_path \'([\w.]+)\': Option \'\w+\' is not accepted', told):
        return f"{told} (--{accepted[1]}.help {accepted[2].rpartition('.')[2]} lists those there are)"
    if "dot import path" in told:
        return re.sub(r"Expected a dot import path string: (\S+)", _unknown_class, told)
    given = [line for line in lines if line.startswith("Given value: ") and len(line) < 60 and "(" not in line]
    return " ".join([told, *given])


def _unknown_class(found: re.Match[str]) -> str:
    loaded = [module for name, module in sys.modules.items() if name.startswith("mmnar_")]
    names = {name for module in loaded for name, value in vars(module).items() if isinstance(value, type)}
    close = get_close_matches(found[1].rpartition(".")[2], names, n=1)
    return f"no class {found[1]} is known" + (f"; is {close[0]} meant?" if close else "")


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Replace the value of each `--config` by a path that exists."""
    resolved: list[str] = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        if resolved and resolved[-1] in ("--config", "-c"):
            word = config_path(word)
        elif equals and flag in ("--config", "-c"):
            word = f"{flag}={config_path(value)}"
        resolved.append(word)
    return resolved
