from __future__ import annotations

import gzip
import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Clock, Column, ExtractError, ItemCatalogue, Only, TableSpec, Units, scan
from mmnar_lightning.extract.raw import Ledger, locate
from mmnar_lightning.extract.reading import Pace, Tally, read
from mmnar_lightning.extract.scan import cached

TABLE = TableSpec("t", "t", {"a": Column(pl.Int64), "b": Column(pl.Float64), "c": Column(pl.String)}, None, key=("a",))
MANY = "a,b,c\n" + "".join(f"{i},{i / 2},text {i}\n" for i in range(50_000))


def write(root: Path, content: str | bytes, name: str = "t.csv") -> Path:
    data = content.encode() if isinstance(content, str) else content
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") and isinstance(content, str) else data)
    return root


@pytest.fixture(params=["cached", "not cached"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "cached" else None


@pytest.mark.parametrize(
    "content",
    [
        "a,b,c\n1,2.5,x\n2,,\n",
        "A,B,C\n1,2.5,x\n2,,\n",
        "secret,c,a,b\ns,x,1,2.5\ns,,2,\n",
        "\ufeffa,b,c\r\n1,2.5,x\r\n2,,\r\n",
        "a,b,c\n1.0, 2.5 ,x\n2,nan,\n",
        'a,b,c\n"1","2.5","x"\n2,,""\n',
        "a,b,c\n1,2.5,x\n2,,",
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "T.csv.gz"])
def test_what_reads_alike_is_alike(content: str, name: str, tmp_path: Path, cache: Path | None) -> None:
    found = scan(write(tmp_path / "raw", content, name), TABLE, cache).collect()
    assert found.rows() == [(1, 2.5, "x"), (2, None, None)]
    assert dict(found.schema) == TABLE.schema


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    pl.DataFrame({"A": ["1", "2"], "b": [2.5, float("nan")], "c": ["x", ""], "secret": [1, 2]}).write_parquet(
        tmp_path / "raw" / "t.parquet"
    )
    assert scan(tmp_path / "raw", TABLE).collect().rows() == [(1, 2.5, "x"), (2, None, None)]


def test_parquet_is_preferred_and_fields_may_span_lines(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", 'a,b,c\n1,2,"x,\n""y"\n3,4,\n')
    assert scan(root, TABLE).collect().rows() == [(1, 2.0, 'x,\n"y'), (3, 4.0, None)]
    pl.DataFrame({"a": [7], "b": [1.0], "c": ["p"]}).write_parquet(root / "t.parquet")
    assert scan(root, TABLE).collect().rows() == [(7, 1.0, "p")]


def cut(share: float) -> bytes:
    packed = gzip.compress(MANY.encode())
    return packed[: int(len(packed) * share)]


def damaged() -> bytes:
    packed = bytearray(gzip.compress(MANY.encode()))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("a,c\n1,x\n", "t.csv", ["t.csv: missing column b"]),
        ("a,b,c,A\n1,2,x,3\n", "t.csv", ["t.csv: column a stands twice"]),
        ("a,b,c\n1,2,x\nsecret,secret,secret\n", "t.csv", ["column a: 1 row (row 2)", "column b: 1 row (row 2)"]),
        ("a,b,c\n" + "9x,1,\n" * 12, "t.csv", ["column a: 12 rows (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)"]),
        ("a,b,c\n1,inf,x\n", "t.csv", ["column b: 1 row (row 1) where no number"]),
        ("a,b,c\n1,1e999,x\n", "t.csv", ["column b: 1 row (row 1) where no number"]),
        ("a,b,c\n1.5,1,x\n", "t.csv", ["column a: 1 row (row 1) where no whole number"]),
        ("a,b,c\n99999999999999999999,1,x\n", "t.csv", ["column a: 1 row (row 1)"]),
        ("a,b,c\n1,2,x\n2,2,x\n1,3,y\n1,2,x\n", "t.csv", ["column a: 2 rows (rows 3, 4) that repeat a key"]),
        ("a,b,c\n1,2,x\n,2,x\n", "t.csv", ["column a: 1 row (row 2) without a value"]),
        ("a,b,c\n1,2\n2,3,x\n", "t.csv", ["1 row (row 1) with another number of fields than the header's 3"]),
        ("a,b,c\n1,2,x\n2,3,x,secret\n", "t.csv", ["1 row (row 2) with another number of fields"]),
        ("a,b,c,d\n1,2,x,\n2,3,x,,secret\n", "t.csv", ["1 row (row 2) with another number of fields"]),
        ("a,b,c\n1,2,x\n\n2,3,x\n", "t.csv", ["1 row (row 2) with another number of fields"]),
        (MANY[:-12], "t.csv", ["1 row (row 50000) with another number of fields"]),
        ('a,b,c\n1,2,x\n2,3,"secret\n3,4,x\n', "t.csv", ["quote that is not closed", "row 2"]),
        ('a,b,c\n1,2,x\n2,3,"secret"y\n', "t.csv", ["quote", "row 2"]),
        (b"a,b,c\n1,2,\xe9\n", "t.csv", ["not UTF-8"]),
        ("a,b,c\n", "t.csv", ["header but no rows"]),
        ("a,b,c\n", "t.csv.gz", ["header but no rows"]),
        (b"", "t.csv", ["t.csv: is empty"]),
        (b"", "t.csv.gz", ["t.csv.gz: is empty"]),
        (gzip.compress(b""), "t.csv.gz", ["t.csv.gz: is empty"]),
        (cut(0.5), "t.csv.gz", ["t.csv.gz: the compressed file is truncated"]),
        (cut(0.9999), "t.csv.gz", ["t.csv.gz: the compressed file is truncated"]),
        (cut(0.0002), "t.csv.gz", ["t.csv.gz: the compressed file is truncated"]),
        (damaged(), "t.csv.gz", ["t.csv.gz: the compressed file is damaged"]),
        (b"secret", "t.parquet", ["t.parquet: is no readable Parquet file"]),
        (b"", "t.parquet", ["t.parquet: is no readable Parquet file"]),
    ],
)
def test_bad_tables(content: str | bytes, name: str, says: list[str], tmp_path: Path, cache: Path | None) -> None:
    root = write(tmp_path / "raw", content, name)
    with pytest.raises(ExtractError) as caught:
        scan(root, TABLE, cache)
    message = str(caught.value)
    assert all(words in message for words in says), message
    assert "secret" not in message
    # a traceback would print what polars quoted
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    if cache is not None:
        assert not cache.exists() or list(cache.iterdir()) == []


def unreadable(path: Path) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_missing_root_a_file_as_root_and_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match="does not exist"):
        scan(tmp_path / "none", TABLE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExtractError, match="is not a folder"):
        scan(tmp_path / "file", TABLE)
    other = TableSpec("u", "hosp/u", {"a": Column(pl.Int64)}, None)
    root = write(tmp_path / "raw", "x\n1\n", "x.csv")
    with pytest.raises(ExtractError, match=r"missing tables t, hosp/u \(as \.parquet, \.csv\.gz, \.csv\)"):
        locate(root, [TABLE, other])


def test_a_table_may_lie_in_a_folder_of_its_own(tmp_path: Path, cache: Path | None) -> None:
    write(tmp_path / "raw", "x\n1\n", "x.csv")
    write(tmp_path / "apart", "")
    write(tmp_path / "apart" / "Note", "a,b,c\n1,2.5,x\n")
    apart = replace(TABLE, file="note/t", folder=tmp_path / "apart")
    assert scan(tmp_path / "raw", apart, cache).collect().rows() == [(1, 2.5, "x")]
    # what is read counts, not where it lies
    assert apart.describe() == replace(apart, folder=None).describe()
    write(tmp_path / "apart" / "Note", "a,b,c\n1,wrong,x\n")
    with pytest.raises(ExtractError, match=r"^Note/t\.csv: column b: 1 row"):
        scan(tmp_path / "raw", apart, cache)


def test_the_folder_of_a_table_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "a,b,c\n1,2,x\n")
    gone, bare = tmp_path / "gone", tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ExtractError, match="gone: the folder of table t does not exist"):
        scan(root, replace(TABLE, folder=gone))
    with pytest.raises(ExtractError, match=r"bare: missing table t \(as"):
        scan(root, replace(TABLE, folder=bare))
    for folder in (gone, bare):
        assert scan(root, replace(TABLE, folder=folder, optional=True)).collect().height == 0
    u, v, w = (TableSpec(name, name, TABLE.columns, None) for name in "uvw")
    with pytest.raises(ExtractError, match=r"raw: missing table u .*\n.*bare: missing tables v, w "):
        locate(root, [TABLE, u, replace(v, folder=bare), replace(w, folder=bare)])


def test_two_files_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "a,b,c\n1,2,x\n")
    write(root, "a,b,c\n1,2,x\n", "T.csv")
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system knows no case")
    with pytest.raises(ExtractError, match="differ only in case"):
        scan(root, TABLE)


def test_an_unreadable_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a patch where the tests run as root, whom permissions don't stop."""
    root = write(tmp_path / "raw", "a,b,c\n1,2,x\n")
    (root / "t.csv").chmod(0)
    if os.geteuid() == 0:
        monkeypatch.setattr(Path, "open", lambda self, *_, **__: unreadable(self))
    with pytest.raises(ExtractError, match=r"t\.csv: can't be read \(permission denied\)"):
        scan(root, TABLE)
    root.chmod(0)
    if os.geteuid() == 0:
        monkeypatch.setattr(Path, "iterdir", unreadable)
    try:
        with pytest.raises(ExtractError, match="permission denied"):
            scan(root, TABLE)
    finally:
        root.chmod(0o700)


def test_optional_tables_and_columns(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "a\n1\n", "u.csv")
    missing = TableSpec("t", "t", TABLE.columns, None, optional=True)
    assert scan(root, missing).collect().schema == pl.Schema(TABLE.schema)
    columns = {"a": Column(pl.Int64), "z": Column(pl.Datetime("us"), required=False)}
    assert scan(root, TableSpec("u", "u", columns, None)).collect().rows() == [(1, None)]
    write(root, "a,b,c\n")
    assert scan(root, missing).collect().height == 0


def test_times_and_truths(tmp_path: Path, cache: Path | None) -> None:
    columns = {"t": Column(pl.Datetime("us")), "d": Column(pl.Date), "y": Column(pl.Boolean)}
    lines = ["2180-05-06 01:02:03,2180-05-06,1", "2180-05-06,2180-05-06 10:00:00,False", "2180-05-06T01:02:03,,"]
    spec = TableSpec("t", "t", columns, Clock("t"))
    found = scan(write(tmp_path / "raw", "t,d,y\n" + "\n".join(lines) + "\n"), spec, cache).collect()
    at, day = datetime(2180, 5, 6, 1, 2, 3), date(2180, 5, 6)
    # a date without a time is the end of that day
    assert found.rows() == [(at, day, True), (datetime(2180, 5, 7), day, False), (at, None, None)]
    write(tmp_path / "raw", "t,d,y\n2180-13-45 00:00:00,2180-02-30,maybe\n")
    with pytest.raises(ExtractError) as caught:
        scan(tmp_path / "raw", spec, cache)
    assert [problem.split(" where ")[1] for problem in caught.value.problems] == [
        "no date and time could be read",
        "no date could be read",
        "no truth value could be read",
    ]


def test_a_number_in_a_parquet_file_is_no_date(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    pl.DataFrame({"t": [1, None], "b": [1.5, 2.0]}).write_parquet(tmp_path / "raw" / "t.parquet")
    spec = TableSpec("t", "t", {"t": Column(pl.Datetime("us")), "b": Column(pl.Int64)}, None)
    with pytest.raises(ExtractError) as caught:
        scan(tmp_path / "raw", spec)
    assert len(caught.value.problems) == 2
    assert "column b: 1 row (row 1) where no whole number" in caught.value.problems[1]


def test_duplicates_are_found_over_all_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("mmnar_lightning.extract.scan"), "BUCKET", 7)
    keys = [*range(100), 5, 50, 5]
    spec = TableSpec("t", "t", {"a": Column(pl.Int64), "b": Column(pl.String)}, None, key=("a", "b"))
    root = write(tmp_path / "raw", "a,b\n" + "".join(f"{k},x{k}\n" for k in keys))
    with pytest.raises(ExtractError, match=r"columns a, b: 3 rows \(rows 101, 102, 103\) that repeat"):
        scan(root, spec)


def test_units_are_checked_while_reading(tmp_path: Path, cache: Path | None) -> None:
    catalogue = ItemCatalogue.from_text("raw_id,variable,unit\nNa,sodium,mmol/L\n", "toy.csv")
    columns = {"item": Column(pl.String), "unit": Column(pl.String)}
    spec = TableSpec("t", "t", columns, None, units=Units(catalogue, "item", "unit"))
    root = write(tmp_path / "raw", "item,unit\nNa,MMOL/L\nNa,\nZn,stones\n")
    assert scan(root, spec, cache).collect().height == 3
    write(root, "item,unit\nNa,\nNa,secret\n")
    with pytest.raises(ExtractError, match=r"column unit: 1 row \(row 2\) with a unit that toy\.csv does not know"):
        scan(root, spec, cache)


CATALOGUE = ItemCatalogue.from_text("raw_id,variable,unit\n7,sodium,\n8,potassium,\n", "toy.csv")
CHOSEN = replace(
    TABLE,
    columns={"a": Column(pl.Int64), "b": Column(pl.Float64), "item": Column(pl.Int64)},
    only=Only.catalogued(CATALOGUE, "item"),
)


def test_only_rows_of_some_items_are_kept(tmp_path: Path) -> None:
    """Of the others nothing is looked at, neither numbers nor keys, but they are counted."""
    lines = ["1,1.5,7,x", "1,secret,9,x", "2,,8,y", "secret,2.5,,", '3,"",07,"x,y"', "1,2,9,"]
    root, cache = write(tmp_path / "raw", "a,b,item,c\n" + "\n".join(lines) + "\n", "t.csv.gz"), tmp_path / "cache"
    for place in (None, cache, cache):
        assert scan(root, CHOSEN, place).collect().rows() == [(1, 1.5, 7), (2, None, 8), (3, None, 7)]
    cache.mkdir(exist_ok=True)
    raw = locate(root, [CHOSEN])["t"]
    assert raw is not None
    for _ in range(2):
        table = cached(raw, CHOSEN, tmp_path / "cache", "sha")
        assert (table.rows, table.kept) == (6, 3)
    write(root, "a,b,item,c\n1,1,7,x\n1,1,9,x\n2,2,9.5,x\n1,1,8,x\n", "t.csv.gz")
    with pytest.raises(ExtractError, match=r"^t\.csv\.gz: column item: 1 row \(row 3\) where no whole number"):
        scan(root, CHOSEN, cache)
    write(root, "a,b,item,c\n1,1,7,x\n1,1,9,x\n1,1,8,x\n", "t.csv.gz")
    with pytest.raises(ExtractError, match=r"column a: 1 row \(row 3\) that repeat a key"):
        scan(root, CHOSEN, cache)
    write(root, "a,b,item,c\n1,1,7,x\n1,1,9,x\n1,x,8\n", "t.csv.gz")
    with pytest.raises(ExtractError, match=r"column b: 1 row \(row 3\) where no number"):
        scan(root, CHOSEN, cache)
    (root / "t.csv.gz").unlink()
    for short in ("1,1", "1,1,9", "1,1,9,x,y"):
        write(root, f"a,b,item,c\n1,1,7,x\n{short}\n2,1,8,x\n")
        with pytest.raises(ExtractError, match=r"1 row \(row 2\) with another number of fields than the header's 4"):
            scan(root, CHOSEN, cache)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("t.csv", "a,item\n1,7\n2,9\n", 2),
        ("t.csv", "item\n7\n9\n7\n", 3),
        ("t.csv", "a,b,item,c\n1,1,7,\n2,2,9,", 2),
        ("t.csv.gz", "a,b,item,c\n" + "1,1,7,\n2,2,9,x\n" * 60_000, 120_000),
        ("t.parquet", "a,b,item,c\n1,1,7,x\n2,2,9,x\n", 2),
    ],
)
def test_rows_that_are_not_kept_are_counted_in_every_shape(name: str, text: str, rows: int, tmp_path: Path) -> None:
    root = write(tmp_path / "raw", text, name)
    if name == "t.parquet":
        pl.read_csv(text.encode()).write_parquet(root / name)
    free = {n: Column(column.dtype, required=n == "item") for n, column in CHOSEN.columns.items()}
    spec = replace(CHOSEN, columns=free, key=())
    raw = locate(root, [spec])["t"]
    assert raw is not None
    table = cached(raw, spec, tmp_path, "sha")
    kept = table.frame.collect()["item"].to_list()
    assert (table.rows, table.kept) == (rows, len(kept))
    assert set(kept) == {7}


def test_a_choice_of_rows_is_part_of_the_fingerprint() -> None:
    assert CHOSEN.describe() != replace(CHOSEN, only=None).describe()
    assert CHOSEN.describe() != replace(CHOSEN, only=Only("item", ("7",))).describe()
    with pytest.raises(ValueError, match=r"no_item used as .* choice of rows"):
        replace(CHOSEN, only=Only("no_item", ("7",)))
    with pytest.raises(ValueError, match="item chooses its rows"):
        replace(CHOSEN, columns={**CHOSEN.columns, "item": Column(pl.Int64, required=False)})


CELLS = st.sampled_from(["", '""', '"7"', " 7", "7 ", "+7", "-0", "07", "7.0", ".5", "5.", "1e3", "1_0", "nan", "NaN"])
CELLS |= st.sampled_from(["inf", "-inf", "infinity", "0x7", "9223372036854775807", "9223372036854775808", "1e999", "x"])
CELLS |= st.integers(-(10**20), 10**20).map(str) | st.floats().map(repr) | st.floats(-1e6, 1e6).map("{:.4f}".format)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_numbers_read_alike_at_every_pace(rows: list[tuple[str, str]]) -> None:
    """The fast reading gives what the slower ones give, or leaves the table to them."""
    spec = TableSpec("t", "t", {"a": Column(pl.Int64), "b": Column(pl.Float64)}, None)
    with TemporaryDirectory() as folder:
        root = write(Path(folder) / "raw", "a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
        raw = locate(root, [spec])["t"]
        assert raw is not None
        made = []
        for pace in Pace:
            try:
                made.append(read(raw, spec, pace, Tally()).collect())
            except pl.exceptions.ComputeError:
                assert pace is Pace.TYPED
                return
    unread = [any(frame[name].any() for name in ("bad:a", "bad:b")) for frame in made]
    if not unread[0]:
        slow = made[1] if not unread[1] else made[2]
        assert not unread[1] or not unread[2]
        assert made[0].equals(slow)
        assert made[0]["b"].to_numpy().tobytes() == slow["b"].to_numpy().tobytes()


def corrupt(text: str) -> str:
    return text.replace("secret", "\x01,corrupt".replace(",", ";"))


@pytest.mark.parametrize("change", [corrupt, str])
def test_other_columns_are_never_read(change: Callable[[str], str], tmp_path: Path) -> None:
    root = write(tmp_path / "raw", change("a,no,b,c\n1,secret,2.5,x\n"))
    assert scan(root, TABLE).collect().rows() == [(1, 2.5, "x")]


def test_the_cache_follows_file_and_spec(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "raw", "a,b,c\n1,2,x\n"), tmp_path / "cache"

    def tables() -> set[str]:
        scan(root, TABLE, cache)
        return {path.name for path in cache.glob("*.parquet")}

    first = tables()
    assert tables() == first
    scan(root, TableSpec("t", "t", {"a": Column(pl.Int64)}, None), cache)
    second = tables()
    assert len(second) == 2
    write(root, "a,b,c\n1,3,x\n")
    assert scan(root, TABLE, cache).collect().rows() == [(1, 3.0, "x")]
    assert len(tables()) == 3


def test_the_ledger_hashes_a_changed_file_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    ledger = Ledger(tmp_path / "hashes.json")
    first = ledger.sha256(path)
    ledger.save()
    assert Ledger(tmp_path / "hashes.json").sha256(path) == first
    path.write_text("two")
    assert Ledger(tmp_path / "hashes.json").sha256(path) != first
    (tmp_path / "hashes.json").write_text("{broken")
    assert len(Ledger(tmp_path / "hashes.json").sha256(path)) == 64
