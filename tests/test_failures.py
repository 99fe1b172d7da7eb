"""Errors in one line: what is wrong, where, and what helps."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from polars.exceptions import ComputeError

from mmnar_lightning import __main__
from mmnar_lightning._failures import reason_of


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, r"no space is left on the disk where /big/x is to be written; free some, or choose another"),
        (errno.EACCES, r"/big/x: permission denied; .* --data\.init_args\.store"),
        (errno.EROFS, r"/big/x: the disk is read-only; choose another"),
        (errno.ENOENT, r"/big/x: no such file or folder \(there is no /big either\)"),
        (errno.ENOTDIR, r"/big/x: a file stands where a folder is needed"),
        (errno.EIO, r"/big/x: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_told_with_a_remedy(number: int, told: str) -> None:
    assert re.search(told, reason_of(OSError(number, os.strerror(number), "/big/x")))


def test_a_missing_extra_is_told_with_the_command_that_brings_it() -> None:
    missing = ModuleNotFoundError("No module named 'peft'", name="peft.tuners")
    assert reason_of(missing) == "peft is not installed; pip install 'mmnar-lightning[lora]'"
    assert "mmnar doctor" in reason_of(ModuleNotFoundError("No module named 'polars'", name="polars"))


def test_our_own_words_are_told_as_they_are_in_one_line() -> None:
    assert reason_of(ValueError("lab.csv.gz: missing column x;\n  add it")) == "lab.csv.gz: missing column x; add it"
    assert reason_of(ValueError()) == "ValueError"


def test_what_nobody_foresaw_may_quote_the_data_and_is_not_quoted() -> None:
    try:
        raise ComputeError("could not parse 'Mrs Example, born 1931' as i64")
    except ComputeError as error:
        told = reason_of(error)
    assert "Example" not in told
    assert "unexpected ComputeError in tests/test_failures.py, line" in told
    assert "--verbose" in told


def test_memory_is_told_with_what_takes_less() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    told = reason_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has a total of 10"))
    assert told.startswith("CUDA out of memory; a smaller --data.init_args.batch_size")
    assert "batch_size" in reason_of(MemoryError())


def test_no_error_is_more_than_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise KeyError("Mrs Example")

    monkeypatch.setattr(__main__, "_run", fail)
    assert __main__.main(["prepare"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmnar prepare: error: unexpected KeyError in ")
    assert __main__.main(["prepare", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        (tmp_path / "file" / "stores").mkdir(parents=True)
    assert reason_of(caught.value).startswith(f"{tmp_path}/file/stores: a file stands where a folder is needed")
