"""Entry point of `mmnar`: the list of commands, and the dispatch. Imports nothing heavy before a command is known."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from mmnar_lightning import _terminal
from mmnar_lightning._failures import reason_of

LIGHTNING = {
    "fit": "Train a model, with validation each epoch: mmnar fit --config configs/eicu.yaml",
    "validate": "Metrics of a run's best checkpoint on val",
    "test": "Metrics of a run's best checkpoint on test",
    "predict": "Write predictions.parquet with a run's best checkpoint",
}
# in the order in which one needs them; a command that stands nowhere is a tool
GROUPS = {
    "data": ("simulate", "prepare", "describe", "embed"),
    "training": ("fit",),
    "evaluation": ("validate", "test", "predict", "evaluate", "benchmark", "report", "rectify"),
    "tools": ("doctor",),
}
FLAGS = ("--verbose", "--quiet")
EVERYWHERE = """with any command:
  --quiet    Say nothing but errors and the result: paths, and the tables that were asked for
  --verbose  Show where an error came from
"""


def commands() -> dict[str, str]:
    """Return the commands that are not Lightning's with the first line of their modules."""
    package = importlib.import_module("mmnar_lightning.commands")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    lines = {n: (importlib.import_module(f"{package.__name__}.{n}").__doc__ or "").split("\n")[0] for n in names}
    return {n.replace("_", "-"): line for n, line in lines.items()}


def usage() -> str:
    """Return what `mmnar --help` prints."""
    from mmnar_lightning import __version__

    listed = {**LIGHTNING, **commands()}
    width = max(map(len, listed))
    grouped = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {"tools": (*GROUPS["tools"], *(name for name in listed if name not in grouped))}
    rows = "\n\n".join(
        "\n".join([f"{group}:", *(f"  {name:<{width}}  {listed[name]}" for name in names if name in listed)])
        for group, names in groups.items()
    )
    return (
        f"mmnar {__version__}: prediction from patient records whose modalities are missing not at random\n\n"
        f"usage: mmnar COMMAND [options]      mmnar COMMAND --help says more\n\n{rows}\n\n"
        f"{EVERYWHERE}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on stderr and a non-zero exit.

    Args:
        arguments: Command line without the program's name; None takes the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    _terminal.set_quiet("--quiet" in given)
    given = [word for word in given if word not in FLAGS]
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if given else 2
    if given[0] == "--version":
        from mmnar_lightning import __version__

        sys.stdout.write(f"mmnar {__version__}\n")
        return 0
    name, rest = given[0], given[1:]
    if name not in LIGHTNING and name not in commands():
        sys.stderr.write(f"mmnar: no command {name!r}; there are: {', '.join([*LIGHTNING, *commands()])}\n")
        return 2
    try:
        return _run(name, rest)
    except KeyboardInterrupt:
        sys.stderr.write("mmnar: interrupted\n")
        return 130
    except BrokenPipeError:
        # whoever reads our output has had enough; without this Python complains when it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # whatever it is, a person gets one line
        if verbose:
            traceback.print_exc()
        sys.stderr.write(f"mmnar {name}: error: {reason_of(error)}\n")
        return 1
    finally:
        # whoever called this from Python may go on
        _terminal.set_quiet(False)


def _run(name: str, rest: Sequence[str]) -> int:
    place = "cli" if name in LIGHTNING else f"commands.{name.replace('-', '_')}"
    words = [name, *rest] if name in LIGHTNING else rest
    try:
        return int(importlib.import_module(f"mmnar_lightning.{place}").run(words))
    finally:
        # a parser ends the process when it has helped
        if {"-h", "--help"} & set(rest):
            sys.stdout.write(f"\n{EVERYWHERE}")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
