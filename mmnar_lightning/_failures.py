"""What went wrong, in one line with the remedy, out of whatever was raised."""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path

# their messages are written for people
TOLD = (ValueError, OSError, RuntimeError, TypeError, ImportError)
# distribution that has an optional module, and the extra that brings it
EXTRAS = {"sklearn": ("scikit-learn", "evaluation"), "peft": ("peft", "lora")}
# what helps, by words in a message of ours or of a library
REMEDIES = (
    (
        r"No supported gpu backend|accelerator is not available",
        "take --trainer.accelerator auto; mmnar doctor lists the devices that there are",
    ),
    (r"the extract's folder|: missing tables? |no MIMIC-IV extract", "mmnar doctor --root DIR tells what a folder is"),
    (r"can't be made the folder of stores", "choose another one by --data.init_args.store"),
    (r"PytorchStreamWriter|iostream error", "a file could not be written to its end: is the disk full?"),
)
_KEPT = "choose another folder by --data.init_args.store, --run_dir or --out"


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong, and what helps where that is known.

    Errors of the kinds that this package raises are told in their own words. Of others, which nobody foresaw, only the
    kind and the place are told: a library's message may quote the data it stumbled over.
    """
    if isinstance(error, ImportError) and (told := _missing_module(error)):
        return told
    if isinstance(error, MemoryError):
        return "not enough memory; a smaller --data.init_args.batch_size, or fewer workers, takes less"
    if isinstance(error, OSError) and (told := _of_the_system(error)):
        return told
    if "os error 28" in str(error):  # as polars tells it
        return f"no space is left on the disk; free some, or {_KEPT}"
    if type(error).__name__ == "OutOfMemoryError":
        first = str(error).split(". ")[0]
        return f"{first}; a smaller --data.init_args.batch_size, or --trainer.precision bf16-mixed, takes less"
    if isinstance(error, TOLD) or type(error).__name__ == "MisconfigurationException":
        told = " ".join(str(error).split()) or type(error).__name__
        remedies = [remedy for words, remedy in REMEDIES if re.search(words, told)]
        return "; ".join([told.rstrip(".!"), *remedies]) if remedies else told
    return f"unexpected {type(error).__name__} in {_place(error)}; --verbose shows all of it (it may quote the data)"


def _missing_module(error: ImportError) -> str | None:
    name = (error.name or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name or name == "mmnar_lightning":
        return None
    package, extra = EXTRAS.get(name, (name, None))
    remedy = f"pip install 'mmnar-lightning[{extra}]'" if extra else "mmnar doctor lists what is missing"
    return f"{package} is not installed; {remedy}"


def _of_the_system(error: OSError) -> str | None:
    """Errors that the system raises, whose own words are those of a programmer; None where the words are ours."""
    if error.errno is None:
        return None
    file = str(error.filename) if error.filename else "a file"
    kind = error.errno
    if kind == errno.ENOSPC:
        where = f" where {file} is to be written" if error.filename else ""
        return f"no space is left on the disk{where}; free some, or {_KEPT}"
    if kind == errno.EDQUOT:
        return f"{file}: your quota on this disk is used up; free some, or {_KEPT}"
    if kind in (errno.EACCES, errno.EPERM):
        return f"{file}: permission denied; ask for the right to it, or {_KEPT}"
    if kind == errno.EROFS:
        return f"{file}: the disk is read-only; {_KEPT}"
    if kind == errno.ENOENT:
        parent = Path(file).absolute().parent
        return f"{file}: no such file or folder" + ("" if parent.exists() else f" (there is no {parent} either)")
    if kind in (errno.ENOTDIR, errno.EEXIST) and error.filename:
        return f"{file}: a file stands where a folder is needed; remove it, or {_KEPT}"
    if kind == errno.EMFILE:
        return "too many open files; fewer --data.init_args.workers, or a higher limit (ulimit -n), helps"
    return f"{file}: {error.strerror}" if error.filename and error.strerror else None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "mmnar_" in Path(f.filename).parent.as_posix()] or frames
    if not own:
        return "an unknown place"
    last = own[-1]
    return f"{Path(last.filename).parent.name}/{Path(last.filename).name}, line {last.lineno}"
