"""Everything known about simulated patients, in a file beside their store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmnar_lightning.records import RecordStore, derive
from mmnar_lightning.simulation import Draw, Floats
from mmnar_simulated.population import Population

FILE = "truth.arrow"
_VALUES = "values/"


def truth_file(store: RecordStore, population: Population) -> Path:
    """The file of a store's truth, written first where it is not there; row i is sample i.

    Columns: ``site`` (index, 0 without sites), ``latent`` u [L], ``propensity`` P(δ = 1 | u, x) [M], ``available`` [M],
    ``risk`` P(y = 1 | u) [K], ``outcomes`` [K] and ``values/<view>`` x_m [F_m], also where it was not observed.
    """

    def write(folder: Path) -> None:
        writer = None
        with pa.OSFile(str(folder / FILE), "wb") as sink:
            for draw, site in population.stream():
                batch = _batch(draw, site)
                writer = writer or pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
            assert writer is not None  # a population has patients
            writer.close()

    return derive(store, "truth", {"format": 1}, write) / FILE


def read_truth(path: Path, rows: NDArray[np.int64] | None = None) -> tuple[Draw, NDArray[np.int64]]:
    """Patients and the index of each one's site.

    Args:
        path: The file.
        rows: Samples of the store, or None for all.
    """
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        index = np.arange(table.num_rows) if rows is None else rows
        table = table if rows is None else table.take(pa.array(rows))

        def wide(name: str) -> Floats:
            column = table.column(name).combine_chunks()
            values: Floats = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
            return values.copy()

        draw = Draw(
            index.astype(np.int64),
            wide("latent"),
            {name.removeprefix(_VALUES): wide(name) for name in table.column_names if name.startswith(_VALUES)},
            wide("available").astype(bool),
            wide("propensity"),
            wide("outcomes").astype(bool),
            wide("risk"),
        )
        return draw, table.column("site").to_numpy().copy()


def _batch(draw: Draw, site: NDArray[np.int64]) -> pa.RecordBatch:
    def lists(values: NDArray[np.float64] | NDArray[np.bool_]) -> pa.Array:
        flat = values.astype(np.uint8) if values.dtype == np.bool_ else values
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), values.shape[1])

    columns = {
        "site": pa.array(site),
        "latent": lists(draw.latent),
        "propensity": lists(draw.propensity),
        "available": lists(draw.available),
        "risk": lists(draw.risk),
        "outcomes": lists(draw.outcomes),
        **{f"{_VALUES}{name}": lists(values) for name, values in draw.values.items()},
    }
    return pa.record_batch(columns)
