"""The how-to for one's own tables is run as it is written: python, files and commands, in their order."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmnar_lightning.__main__ import main
from mmnar_lightning.records import RecordStore

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own-tables.md"
BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmnar"])  # pytest's own arguments are none of mmnar's
    names: dict[str, Any] = {}
    ran: list[str] = []
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        language, title, code = block["language"], block["title"], block["code"]
        if title is not None:
            Path(title).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
        elif language == "bash":
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "mmnar"
                assert main(arguments) == 0, (line, capsys.readouterr().err)
                ran.append(arguments[0])
    assert ran == ["prepare", "fit", "test", "predict"]

    store = names["store"]
    assert isinstance(store, RecordStore)
    samples, given = store.samples, pl.read_parquet("my-tables/samples.parquet")
    assert samples["id/sample_id"].to_list() == given["sample_id"].to_list()
    assert samples["label/death"].null_count() == given["death"].null_count() > 0
    assert samples["observed/vitals"].all()
    # the sicker are measured more often, as the page says
    assert samples["observed/labs"].to_numpy() @ names["severity"] > 0
    start, stop = (samples[f"{end}/labs"].to_numpy() for end in ("start", "stop"))
    assert set(np.unique(stop - start)) == {0, 2}
    predicted = pl.read_parquet("runs/my-tables/predictions.parquet")
    assert 0 < predicted.height < samples.height
    assert predicted["death/raw"].is_between(0, 1).all()


def test_every_setting_of_schema_yaml_is_on_the_page() -> None:
    from mmnar_tables.description import KEYS, MODALITY_KEYS, TASK_KEYS

    page = PAGE.read_text(encoding="utf-8")
    for key in {*KEYS, *TASK_KEYS, *(k for keys in MODALITY_KEYS.values() for k in keys), *MODALITY_KEYS}:
        assert f"`{key}`" in page, key
