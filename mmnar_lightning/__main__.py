"""Entry point of `mmnar`: the list of commands, and the dispatch. Imports nothing heavy before a command is known."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence

LIGHTNING = {
    "fit": "Train a model, with validation each epoch: mmnar fit --config configs/eicu.yaml",
    "validate": "Metrics of a run's best checkpoint on val",
    "test": "Metrics of a run's best checkpoint on test",
    "predict": "Write predictions.parquet with a run's best checkpoint",
}


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
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, line in listed.items())
    return (
        f"mmnar {__version__}: prediction from patient records whose modalities are missing not at random\n\n"
        f"usage: mmnar COMMAND [options]      mmnar COMMAND --help says more\n\n{rows}\n\n"
        "  --verbose with any command shows where an error came from; --version\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error is one line on stderr and a non-zero exit.

    Args:
        arguments: Command line without the program's name; None takes the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    given = [word for word in given if word != "--verbose"]
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if given else 2
    if given[0] == "--version":
        from mmnar_lightning import __version__

        sys.stdout.write(f"mmnar {__version__}\n")
        return 0
    name, rest = given[0], given[1:]
    try:
        if name in LIGHTNING:
            return int(importlib.import_module("mmnar_lightning.cli").run([name, *rest]))
        if name in commands():
            module = importlib.import_module(f"mmnar_lightning.commands.{name.replace('-', '_')}")
            return int(module.run(rest))
    except KeyboardInterrupt:
        sys.stderr.write("mmnar: interrupted\n")
        return 130
    except (ValueError, OSError, RuntimeError, TypeError, ImportError) as error:
        if verbose:
            traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"mmnar {name}: error: {reason}\n")
        return 1
    sys.stderr.write(f"mmnar: no command {name!r}; there are: {', '.join([*LIGHTNING, *commands()])}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
