"""The model card is filled with the run's numbers, and leaves to people what only they can say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from mmnar_lightning.reports import read_run, render_model_card


def test_it_is_filled(made: ModuleType, tmp_path: Path) -> None:
    card = render_model_card(read_run(made.write_run(tmp_path / "run")))
    assert card.startswith("# Model card: run\n")
    assert "| rectified | 0.807 \\[0.751, 0.855\\] |" in card
    assert "Data fingerprint: 5b1c3db67123b363" in card
    assert card.count("**To fill in**") == 6
    assert "Caution. Few events." in card
    assert render_model_card(read_run(tmp_path / "run")) == card


def test_tables_are_whole_and_names_are_no_markup(made: ModuleType, tmp_path: Path) -> None:
    card = render_model_card(read_run(made.write_run(tmp_path / "run")))
    assert not re.search(r"<\w", card)
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    assert len(tables) >= 8
    for table in tables:
        # an escaped bar is part of a cell
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_small_counts_are_not_in_it(made: ModuleType, tmp_path: Path) -> None:
    card = render_model_card(read_run(made.write_run(tmp_path / "run")))
    assert "| patient | unknown discharge | &lt; 10 |" in card
    assert "tiny" not in card
