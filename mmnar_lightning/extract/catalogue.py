"""Item catalogues: raw ids → variables, with units, conversions and plausible ranges, in a table people can extend."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from importlib import resources
from typing import Literal, Self

import polars as pl

from mmnar_lightning.extract.extraction import Counts
from mmnar_lightning.extract.tables import ExtractError

COLUMNS = ("raw_id", "variable", "unit", "factor", "offset", "low", "high", "description")
# stands between raw id and unit in a looked-up pair; never part of either
JOINT = "\x1f"


@dataclass(frozen=True)
class Entry:
    """One line of a catalogue: value in the variable's unit = raw value × `factor` + `offset`.

    Args:
        raw_id: Id of the item in the raw table.
        variable: What it measures; several raw ids may share one.
        unit: Unit of the raw values, with other spellings of it behind ``|``; the first line of a raw id gives the
            unit of values that come without one.
        factor: Conversion factor (default 1).
        offset: Conversion offset (default 0).
        low: Lowest plausible value after conversion, or None.
        high: Highest plausible value after conversion, or None.
        description: In words.
    """

    raw_id: str
    variable: str
    unit: str = ""
    factor: float = 1.0
    offset: float = 0.0
    low: float | None = None
    high: float | None = None
    description: str = ""

    @property
    def units(self) -> tuple[str, ...]:
        """Spellings of the unit, as they are compared."""
        return tuple(_unit(spelling) for spelling in self.unit.split("|"))


def _unit(text: str) -> str:
    return text.strip().lower()


@dataclass(frozen=True)
class ItemCatalogue:
    """Which raw items are read, as which variables.

    A CSV with the columns ``raw_id, variable, unit, factor, offset, low, high, description``. Several raw ids may map
    to one variable, and a raw id may stand on several lines with different units. A unit is compared without regard to
    case and blanks around it; ``mg/dL|mg%`` names two spellings.

    Args:
        entries: Its lines.
        source: File it came from, for messages.
        sha256: Hash of that file, part of the fingerprint of whatever uses it.
    """

    entries: tuple[Entry, ...]
    source: str
    sha256: str

    @classmethod
    def read(cls, package: str, name: str) -> Self:
        """Read a CSV that ships in a package, as ``ItemCatalogue.read("my_plugin", "labs.csv")``.

        Raises:
            ExtractError: If it is missing or wrong; names the lines.
        """
        file = resources.files(package).joinpath(name)
        if not file.is_file():
            raise ExtractError(f"catalogue {name}: not found in package {package}")
        return cls.from_text(file.read_text(encoding="utf-8"), name)

    @classmethod
    def from_text(cls, text: str, source: str) -> Self:
        """Read the text of a CSV.

        Raises:
            ExtractError: If a column is missing, a number is none, a range is empty, or a raw id has a unit twice.
        """
        reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
        missing = [name for name in COLUMNS[:3] if name not in (reader.fieldnames or ())]
        strange = [name for name in reader.fieldnames or () if name not in COLUMNS]
        if missing or strange:
            raise ExtractError(
                f"catalogue {source}: missing columns {missing or 'none'}, unknown columns {strange or 'none'}; "
                f"it has {', '.join(COLUMNS)}"
            )
        problems: list[str] = []
        entries: list[Entry] = []
        seen: set[tuple[str, str]] = set()
        variable_of: dict[str, str] = {}
        for line in reader:
            try:
                entry = _entry(line)
                if variable_of.setdefault(entry.raw_id, entry.variable) != entry.variable:
                    raise ValueError("the raw id stands for another variable above")
                for unit in entry.units:
                    if (entry.raw_id, unit) in seen:
                        raise ValueError("the raw id has this unit already")
                    seen.add((entry.raw_id, unit))
                entries.append(entry)
            except ValueError as error:
                problems.append(f"catalogue {source}: line {reader.line_num}: {error}")
        if not entries and not problems:
            problems.append(f"catalogue {source}: has no lines")
        if problems:
            raise ExtractError(*problems)
        return cls(tuple(entries), source, hashlib.sha256(text.encode()).hexdigest())

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables, in the order of the catalogue."""
        return tuple(dict.fromkeys(entry.variable for entry in self.entries))

    @property
    def raw_ids(self) -> tuple[str, ...]:
        """The raw ids, in the order of the catalogue."""
        return tuple(dict.fromkeys(entry.raw_id for entry in self.entries))

    def _pairs(self) -> dict[str, Entry]:
        """Entry by looked-up pair; a raw id without unit is its first line."""
        pairs: dict[str, Entry] = {}
        for entry in self.entries:
            pairs.setdefault(entry.raw_id + JOINT, entry)
        for entry in self.entries:
            for unit in entry.units:
                # a blank unit is the default, whichever line it stands on
                if unit:
                    pairs[entry.raw_id + JOINT + unit] = entry
        return pairs

    def known(self, raw_id: pl.Expr) -> pl.Expr:
        """Flag rows whose raw id is in the catalogue."""
        return raw_id.cast(pl.String).is_in(self.raw_ids).fill_null(False)

    def unknown_unit(self, raw_id: pl.Expr, unit: pl.Expr) -> pl.Expr:
        """Flag rows whose raw id is in the catalogue, but with a unit that is not; a blank unit is never unknown."""
        return self.known(raw_id) & ~_pair(raw_id, unit).is_in(list(self._pairs()))

    def apply(
        self,
        frame: pl.LazyFrame,
        raw_id: str,
        value: str,
        unit: str | None = None,
        log: Counts | None = None,
        table: str = "",
        unknown_unit: Literal["error", "count"] = "error",
        pairs: pl.DataFrame | None = None,
    ) -> pl.LazyFrame:
        """Turn raw items into variables, in their units, within their plausible ranges.

        Args:
            frame: Rows of a table.
            raw_id: Column with the raw id, text or integer.
            value: Column with the raw value, a number.
            unit: Column with the unit, or None where the table has none (every value then has its default unit).
            log: Where rows without catalogued item, implausible values and unknown units are counted; needs one pass.
            table: Name of the table in the log and in messages.
            unknown_unit: Whether a unit that the catalogue does not know for its raw id is an error, or counted and the
                value nulled.
            pairs: All raw ids and units that `frame` may hold, in these columns, where they are at hand for less than
                a pass over it; what is counted is always counted in `frame`.

        Returns:
            The rows of catalogued items, in no certain order, with further columns ``variable`` (String), ``value``
            (Float64; null where it was null, implausible, or in an unknown unit) and ``unknown_unit`` (whether its
            unit is unknown).

        Raises:
            ExtractError: If a unit is unknown and that is an error; names file, column, count and row numbers.
        """
        keys = [raw_id] if unit is None else [raw_id, unit]
        found = (frame if pairs is None else pairs.lazy()).group_by(keys).len().collect(engine="streaming")
        lookup = self._lookup(found, raw_id, unit)
        if unknown_unit == "error" and unit is not None and lookup["unknown_unit"].any():
            self._demand_units(frame, raw_id, unit, table)
        if unit is not None and lookup.drop(unit, "len").n_unique() == lookup[raw_id].n_unique():
            # no item has two units that matter: text need not be compared
            lookup, keys = lookup.unique(raw_id).drop(unit), [raw_id]
        # `value` may be the name of the raw column, too
        named = frame.with_columns(_raw=pl.col(value).cast(pl.Float64)).join(
            lookup.drop("len").lazy(), on=keys, how="inner", nulls_equal=True
        )
        converted = named.with_columns(value=pl.col("_raw") * pl.col("_factor") + pl.col("_offset"))
        within = pl.col("value").is_finite()
        within &= pl.col("_low").is_null() | (pl.col("value") >= pl.col("_low"))
        within &= pl.col("_high").is_null() | (pl.col("value") <= pl.col("_high"))
        flagged = converted.with_columns(_implausible=~within.fill_null(True))
        if log is not None:
            strange = found if pairs is None else frame.group_by(raw_id).len().collect(engine="streaming")
            others = strange.filter(~self.known(pl.col(raw_id)))["len"]
            log.add(table, "rows of items not in the catalogue", int(others.sum()))
            self._count(flagged, log, table)
        ranged = flagged.with_columns(value=pl.when(~pl.col("_implausible")).then(pl.col("value")))
        return ranged.select(pl.exclude("_raw", "_factor", "_offset", "_low", "_high", "_implausible"))

    def _lookup(self, found: pl.DataFrame, raw_id: str, unit: str | None) -> pl.DataFrame:
        """Variable, conversion and range of the catalogued among raw ids and units; no numbers for an unknown unit."""
        variables = {entry.raw_id: entry.variable for entry in self.entries}
        pairs = self._pairs()
        numbers = {
            f"_{name}": [getattr(e, name) for e in pairs.values()] for name in ("factor", "offset", "low", "high")
        }
        known = pl.DataFrame({"_pair": list(pairs), **numbers}, schema_overrides=dict.fromkeys(numbers, pl.Float64))
        text = pl.lit(None, dtype=pl.String) if unit is None else pl.col(unit)
        named = found.with_columns(
            variable=pl.col(raw_id).cast(pl.String).replace_strict(variables, default=None, return_dtype=pl.String),
            _pair=_pair(pl.col(raw_id), text),
        ).filter(pl.col("variable").is_not_null())
        looked_up = named.join(known, on="_pair", how="left", maintain_order="left")
        return looked_up.with_columns(unknown_unit=pl.col("_factor").is_null()).drop("_pair")

    def _demand_units(self, frame: pl.LazyFrame, raw_id: str, unit: str, table: str) -> None:
        wrong = self.unknown_unit(pl.col(raw_id), pl.col(unit))
        count = frame.select(wrong.sum()).collect(engine="streaming").item()
        if count:
            where = f"{table}: " if table else ""
            raise ExtractError(
                f"{where}column {unit}: {count} rows with a unit that {self.source} does not know for their raw id "
                "(give the table spec `units=` to have them named when the file is read)"
            )

    def _count(self, flagged: pl.LazyFrame, log: Counts, table: str) -> None:
        unit = pl.col("unknown_unit") & pl.col("_raw").is_not_null()
        sums = flagged.group_by("variable").agg(implausible=pl.col("_implausible").sum(), unit=unit.sum())
        found = {row[0]: row[1:] for row in sums.collect(engine="streaming").rows()}
        for variable in self.variables:
            implausible, unknown = found.get(variable, (0, 0))
            if implausible:
                log.add(table, f"implausible values of {variable}, nulled", implausible)
            if unknown:
                log.add(table, f"values of {variable} in an unknown unit, nulled", unknown)


def _pair(raw_id: pl.Expr, unit: pl.Expr) -> pl.Expr:
    unit = unit.str.strip_chars().str.to_lowercase().fill_null("")
    return pl.concat_str(raw_id.cast(pl.String), pl.lit(JOINT), unit)


def _number(line: dict[str, str | None], name: str) -> float | None:
    text = (line.get(name) or "").strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"column {name} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"column {name} is not finite")
    return number


def _entry(line: dict[str, str | None]) -> Entry:
    if None in line or None in line.values():
        raise ValueError("another number of fields than the header has")
    raw_id, variable = (line["raw_id"] or "").strip(), (line["variable"] or "").strip()
    if not raw_id or not variable:
        raise ValueError("raw_id and variable must not be empty")
    factor, low, high = _number(line, "factor"), _number(line, "low"), _number(line, "high")
    if factor == 0:
        raise ValueError("factor is 0, which would make every value the same")
    if low is not None and high is not None and low >= high:
        raise ValueError("low is not below high")
    return Entry(
        raw_id,
        variable,
        unit=(line["unit"] or "").strip(),
        factor=1.0 if factor is None else factor,
        offset=_number(line, "offset") or 0.0,
        low=low,
        high=high,
        description=(line.get("description") or "").strip(),
    )
