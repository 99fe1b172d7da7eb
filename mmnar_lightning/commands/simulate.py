"""Write a simulated raw extract with known missingness: mmnar simulate eicu DIR --patients 1000 --seed 0"""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path

from mmnar_lightning import _terminal
from mmnar_lightning.commands._config import plugins


def run(arguments: Sequence[str]) -> int:
    """Run the simulator that is named first, with the options of its signature.

    Raises:
        ValueError: If there is no such simulator (lists those there are) or an option is wrong.
    """
    _terminal.begin()
    known = plugins("simulator")
    listed = ", ".join(known) or "none is installed"
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = "usage: mmnar simulate NAME DIR [options]      mmnar simulate NAME --help lists the options"
        sys.stdout.write(f"{usage}\n\n{__doc__}\n\nsimulators: {listed}\n")
        return 0 if arguments else 2
    name, rest = arguments[0], list(arguments[1:])
    if name not in known:
        raise ValueError(f"no simulator {name!r}; there are: {listed}")
    return _run(name, known[name].load(), rest)


def _run(name: str, simulate: Callable[..., None], arguments: list[str]) -> int:
    # a second to import; the list of commands has no use for it
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"mmnar simulate {name}", description=__doc__, exit_on_error=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="Folder to write to: a new or an empty one (required)")
    parser.add_function_arguments(simulate, skip={"folder"})
    try:
        options = vars(parser.parse_args(arguments))
    except ArgumentError as error:
        raise ValueError(f"{error} (mmnar simulate {name} --help lists the options)") from error
    folder = options.pop("folder")
    if "progress" in options:
        options["progress"] &= _terminal.shows_bars()
    simulate(folder, **options)
    _terminal.result(str(folder))
    return 0
