"""Every way an extract can be bad, through the real command: one line, a non-zero exit, no value, nothing written."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.__main__ import main

# As in conftest.py, where every message is searched for them.
WORD, NUMBER = "sesame-7313-secret", "7313.25"
Rows = list[list[str]]
Refused = Callable[[Path], str]


@dataclass(frozen=True)
class Place:
    """Where a case does its damage."""

    root: Path
    stores: Path
    patch: pytest.MonkeyPatch

    def replace(self, name: str, content: bytes) -> None:
        """Put other bytes in the place of a file. Its name is unlinked first: the sound extract shares the bytes."""
        (self.root / name).unlink(missing_ok=True)
        (self.root / name).write_bytes(content)

    def raw(self, table: str) -> bytes:
        """Bytes of a table, as they stand compressed on disk."""
        return (self.root / f"{table}.csv.gz").read_bytes()

    def text(self, table: str) -> str:
        """Decompressed text of a table."""
        return gzip.decompress(self.raw(table)).decode()

    def edit(self, table: str, change: Callable[[list[str], Rows], None]) -> None:
        """Change header and rows of a table in place."""
        header, *rows = csv.reader(self.text(table).splitlines())
        change(header, rows)
        lines = "".join(
            ",".join(f'"{field}"' if "," in field else field for field in row) + "\n" for row in [header, *rows]
        )
        self.replace(f"{table}.csv.gz", gzip.compress(lines.encode()))


Break = Callable[[Place], None]


def nothing(place: Place) -> None:
    """The input is sound; the options are not."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        name: What is bad.
        damage: Makes it so.
        says: Patterns that the one line must match.
        init_args: Options of the datamodule that are not the default; `root` and `store` among them.
        denial: Makes reading fail, where no change of a file does: a test that runs as root may read everything.
    """

    name: str
    damage: Break
    says: tuple[str, ...]
    init_args: dict[str, Any] = field(default_factory=dict)
    denial: Break = nothing


def unlink(*tables: str) -> Break:
    def damage(place: Place) -> None:
        for table in tables:
            (place.root / f"{table}.csv.gz").unlink()

    return damage


def drop(table: str, *columns: str) -> Break:
    def change(header: list[str], rows: Rows) -> None:
        for column in columns:
            at = header.index(column)
            for row in [header, *rows]:
                del row[at]

    return lambda place: place.edit(table, change)


def put(table: str, column: str, value: str, *numbers: int) -> Break:
    """Write a value into a column of these rows, counted from 1."""

    def change(header: list[str], rows: Rows) -> None:
        for number in numbers:
            rows[number - 1][header.index(column)] = value

    return lambda place: place.edit(table, change)


def repeat(table: str, *numbers: int) -> Break:
    """Append copies of rows."""
    return lambda place: place.edit(table, lambda _, rows: rows.extend(list(rows[number - 1]) for number in numbers))


def both(*breaks: Break) -> Break:
    def damage(place: Place) -> None:
        for one in breaks:
            one(place)

    return damage


def content(name: str, make: Callable[[Place], bytes]) -> Break:
    return lambda place: place.replace(name, make(place))


def substitute(table: str, old: bytes, new: bytes) -> Break:
    """Replace the first occurrence of some bytes of a table."""
    return content(f"{table}.csv.gz", lambda place: gzip.compress(place.text(table).encode().replace(old, new, 1)))


def unlisted(place: Place) -> None:
    """Make the folder one whose listing fails."""
    listing = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path == place.root:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    place.patch.setattr(Path, "iterdir", refused)


def unopened(place: Place) -> None:
    """Make one file a file that can't be opened."""
    opening = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "lab.csv.gz":
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, *arguments, **options)

    place.patch.setattr(Path, "open", refused)


def a_file(place: Place) -> None:
    shutil.rmtree(place.root)
    place.root.write_text(WORD)


def a_folder(place: Place) -> None:
    (place.root / "lab.csv.gz").unlink()
    (place.root / "lab.csv.gz").mkdir()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[middle + 64 :]


def lab_as_parquet(place: Place) -> None:
    frame = pl.read_csv(place.text("lab").encode(), infer_schema=False)
    second = pl.int_range(pl.len()) == 1
    frame.with_columns(labresult=pl.when(second).then(pl.lit(WORD)).otherwise("labresult")).write_parquet(
        place.root / "lab.parquet"
    )


def one_name_twice(header: list[str], _: Rows) -> None:
    header[0] = "labresult"


def one_more_field(_: list[str], rows: Rows) -> None:
    rows[4].append(WORD)


# fmt: off
EXTRACT = [
    Case("missing table", unlink("lab"), ("missing table lab ",)),
    Case("two missing tables", unlink("vitalPeriodic", "note"), ("missing tables vitalPeriodic, note ",)),
    Case("missing column", drop("lab", "labresult"), (r"lab\.csv\.gz: missing column labresult",)),
    Case("missing columns in two tables", both(drop("patient", "uniquepid", "age"), drop("note", "notepath")),
         (r"patient\.csv\.gz: missing columns uniquepid, age", r"note\.csv\.gz: missing column notepath")),
    Case("column twice in the header", lambda place: place.edit("lab", one_name_twice),
         (r"lab\.csv\.gz: column labresult stands twice in the header",)),
    Case("text in a number column", put("lab", "labresult", WORD, 3, 7),
         (r"lab\.csv\.gz: column labresult: 2 rows \(rows 3, 7\) where no number",)),
    Case("text in a number column, many rows", put("vitalPeriodic", "heartrate", WORD, *range(1, 41)),
         (r"vitalPeriodic\.csv\.gz: column heartrate: 40 rows \(rows 1, 2, 3, .*…\) where no number",)),
    Case("infinite number", put("lab", "labresult", "inf", 5),
         (r"lab\.csv\.gz: column labresult: 1 row \(row 5\) where no number",)),
    Case("text in the clock", put("treatment", "treatmentoffset", WORD, 2),
         (r"treatment\.csv\.gz: column treatmentoffset: 1 row \(row 2\) where no whole number",)),
    Case("fraction in a column of whole minutes", put("patient", "unitdischargeoffset", NUMBER, 4),
         (r"patient\.csv\.gz: column unitdischargeoffset: 1 row \(row 4\) where no whole number",)),
    Case("date where minutes are expected", put("patient", "hospitaladmitoffset", "2115-03-01", 1),
         (r"patient\.csv\.gz: column hospitaladmitoffset: 1 row \(row 1\) where no whole number",)),
    Case("two tables at once", both(put("lab", "labresult", WORD, 3), put("note", "noteoffset", WORD, 1)),
         (r"lab\.csv\.gz: column labresult: 1 row \(row 3\)", r"note\.csv\.gz: column noteoffset: 1 row \(row 1\)")),
    Case("duplicate key", repeat("patient", 2, 5),
         (r"patient\.csv\.gz: column patientunitstayid: 2 rows \(rows \d+, \d+\) that repeat a key",)),
    Case("duplicate hospital", repeat("hospital", 1),
         (r"hospital\.csv\.gz: column hospitalid: 1 row \(row \d+\) that repeat",)),
    Case("no key", put("patient", "patientunitstayid", "", 3),
         (r"patient\.csv\.gz: column patientunitstayid: 1 row \(row 3\) without a value",)),
    Case("no person", put("patient", "uniquepid", "", 1, 2),
         (r"patient\.csv\.gz: column uniquepid: 2 rows \(rows 1, 2\) without a value",)),
    Case("row of no unit stay", put("medication", "patientunitstayid", "", 6),
         (r"medication\.csv\.gz: column patientunitstayid: 1 row \(row 6\) without a value",)),
    Case("unknown unit", put("lab", "labmeasurenamesystem", WORD, 1),
         (r"lab\.csv\.gz: column labmeasurenamesystem: 1 row \(row 1\) with a unit that \S+ does not know",)),
    Case("truncated gz", content("vitalPeriodic.csv.gz", lambda place: place.raw("vitalPeriodic")[:-4000]),
         (r"vitalPeriodic\.csv\.gz: the compressed file is truncated",)),
    Case("gz truncated in its header", content("lab.csv.gz", lambda place: place.raw("lab")[:6]),
         (r"lab\.csv\.gz: the compressed file is (truncated|damaged)",)),
    Case("damaged gz", content("lab.csv.gz", lambda place: flipped(place.raw("lab"))),
         (r"lab\.csv\.gz: the compressed file is damaged",)),
    Case("empty file", content("lab.csv.gz", lambda _: b""), (r"lab\.csv\.gz: is empty",)),
    Case("empty file in gz", content("note.csv.gz", lambda _: gzip.compress(b"")), (r"note\.csv\.gz: is empty",)),
    Case("empty file that two specs read", content("patient.csv.gz", lambda _: b""),
         (r"error: patient\.csv\.gz: is empty",)),
    Case("header only", lambda place: place.edit("diagnosis", lambda _, rows: rows.clear()),
         (r"diagnosis\.csv\.gz: has a header but no rows",)),
    Case("a field too many", lambda place: place.edit("lab", one_more_field),
         (r"lab\.csv\.gz: 1 row \(row 5\) with another number of fields",)),
    Case("open quote", substitute("note", b"\n", f'\n1,2,3,4,"{WORD},'.encode()),
         (r"note\.csv\.gz: is no well-formed CSV: a quote that is not closed.*row 1",)),
    Case("not UTF-8", substitute("treatment", b"|", b"\xff\xfe"),
         (r"treatment\.csv\.gz: holds bytes that are not UTF-8",)),
    Case("no Parquet", content("lab.parquet", lambda _: WORD.encode()),
         (r"lab\.parquet: is no readable Parquet file",)),
    Case("text in a number column of Parquet", lab_as_parquet,
         (r"lab\.parquet: column labresult: 1 row \(row 2\) where no number",)),
    Case("names that differ only in case", content("LAB.csv.gz", lambda place: place.raw("lab")),
         (r"LAB\.csv\.gz and lab\.csv\.gz differ only in case",)),
    Case("table that is a folder", a_folder, (r"lab\.csv\.gz: is a folder",)),
    Case("unreadable file", nothing, (r"lab\.csv\.gz: can't be read \(permission denied\)",), denial=unopened),
    Case("unreadable folder", nothing, (r"extract: .*can't be read \(permission denied\)",), denial=unlisted),
    Case("missing root", lambda place: shutil.rmtree(place.root), (r"extract: .*does not exist",)),
    Case("root that is a file", a_file, (r"extract: .*is not a folder",)),
    Case("no root and no store", nothing, ("no store of eicu landmark",), {"root": None}),
    Case("store that is a file", nothing, (r"patient\.csv\.gz: can't be made",), {"store": "{root}/patient.csv.gz"}),
    Case("store in a file", nothing, (r"patient\.csv\.gz/s: can't be made",), {"store": "{root}/patient.csv.gz/s"}),
    Case("unknown cohort", nothing, ("cohort", "landmark", "unit_discharge"), {"cohort": "everyone"}),
    Case("text for a number", nothing, ("landmark_hours",), {"landmark_hours": "a day"}),
    Case("landmark after the horizon", nothing, ("landmark_hours must lie between",), {"landmark_hours": 168}),
    Case("negative delay", nothing, ("lab_delay must not be negative",), {"lab_delay": -1}),
    Case("unknown option", nothing, ("land_mark",), {"land_mark": 24}),
    Case("unknown way to split", nothing, ("splits",), {"splits": {"by": "moon"}}),
]
# fmt: on


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A sound extract of one's own, to damage."""
    root = tmp_path / "extract"
    root.mkdir()
    for file in sound.glob("*.gz"):
        os.link(file, root / file.name)
    return Place(root, tmp_path / "stores", monkeypatch)


@pytest.mark.parametrize("case", EXTRACT, ids=lambda case: case.name)
def test_bad_extract(
    case: Case, place: Place, tmp_path: Path, refused: Refused, contents: Any, write_config: Any
) -> None:
    people = set(column(place, "patient", "uniquepid"))
    given = {
        name: str(v).replace("{root}", str(place.root)) if name == "store" else v for name, v in case.init_args.items()
    }
    config = write_config(tmp_path / "config.yaml", {"root": place.root, "store": place.stores, **given})
    case.damage(place)
    before = contents(tmp_path)
    case.denial(place)
    line = refused(config)
    place.patch.undo()
    for pattern in case.says:
        assert re.search(pattern, line), line
    assert not any(person in line for person in people), "the message names a person"
    assert contents(tmp_path) == before, "something was written"


def column(place: Place, table: str, name: str) -> list[str]:
    header, *rows = csv.reader(place.text(table).splitlines())
    return [row[header.index(name)] for row in rows]


@pytest.mark.parametrize(
    "damage",
    [unlink("lab"), put("lab", "labresult", WORD, 3), repeat("patient", 2)],
    ids=["missing", "text", "duplicate"],
)
def test_a_bad_extract_leaves_the_stores_that_are_there(
    damage: Break,
    place: Place,
    sound_stores: Path,
    tmp_path: Path,
    refused: Refused,
    contents: Any,
    write_config: Any,
) -> None:
    shutil.copytree(sound_stores, place.stores)
    config = write_config(tmp_path / "config.yaml", {"root": place.root, "store": place.stores})
    before = contents(place.stores)
    damage(place)
    refused(config)
    assert contents(place.stores) == before


def test_a_sound_extract_is_prepared_readably_without_a_terminal(
    place: Place,
    tmp_path: Path,
    write_config: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What all cases above start from is sound; and a log file gets whole lines without colour codes."""
    config = write_config(tmp_path / "config.yaml", {"root": place.root, "store": place.stores})
    assert main(["prepare", "--config", str(config)]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).parent == place.stores
    assert "\x1b" not in out + err
    assert "label/mortality_hospital" in err, "a name is cut"
    assert "left the hospital by hour 24" in err, "a line is broken"
    steps = [record.getMessage() for record in caplog.records if record.name == "mmnar_lightning.extract.prepare"]
    assert any(re.fullmatch(r"\[\d+/\d+\] reading lab\.csv\.gz", step) for step in steps), "no progress is shown"
