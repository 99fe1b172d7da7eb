"""Series against plain loops that share no code with them, and what every encoder must do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mmnar_lightning.encoders import SeriesEncoder, VectorEncoder, default_encoder, encode
from mmnar_lightning.encoders.triplets import buckets
from mmnar_lightning.records import Elements, Inputs, Modality, PatientBatch

NAN = float("nan")
LABS = Modality("labs", "series", ("a", "b", "c"), (1.0, 0.0, -2.0), (2.0, 1.0, 0.5))
# batch row, hours before, variable, value
Event = tuple[int, float, int, float]
Cell = Literal["grud", "triplets"]
CELLS: tuple[Cell, ...] = ("grud", "triplets")
EVENTS: list[Event] = [
    (0, 30.0, 0, 1.5),
    (0, 26.5, 0, 3.0),
    (0, 26.0, 1, -0.5),
    (0, 3.2, 2, -1.0),
    (0, 3.0, 2, -2.5),
    (0, 0.0, 1, 2.0),
    (2, 11.0, 1, 0.25),
    (3, 7.9, 0, 4.0),
    (3, 7.1, 0, 2.0),
    (3, 7.0, 2, -1.75),
    (3, 1.0, 0, 0.0),
]
ROWS = [0, 2, 3]


def elements(events: list[Event]) -> Elements:
    row, hours, variable, value = ([e[k] for e in events] for k in range(4))
    return Elements(
        torch.tensor(row, dtype=torch.long),
        torch.tensor(hours, dtype=torch.float32),
        torch.tensor(value, dtype=torch.float32),
        torch.tensor(variable, dtype=torch.long),
    )


def build(cell: Cell, width: int = 8, modality: Modality = LABS, **options: Any) -> SeriesEncoder:
    torch.manual_seed(3)
    encoder = SeriesEncoder(modality, width, cell=cell, **{"hidden": 12, **options})
    # decays and attention begin alike for all, which would hide mistakes
    for name, parameter in encoder.named_parameters():
        if "decay" in name or "value_bias" in name or "score" in name:
            nn.init.normal_(parameter, 0.3, 0.5)
    return encoder.eval()


def run(encoder: SeriesEncoder, events: list[Event], rows: list[int]) -> tuple[Tensor, Inputs]:
    tokens, inputs = encoder(elements(events), torch.tensor(rows, dtype=torch.long))
    assert inputs is not None
    assert tokens.shape == (len(rows), encoder.width)
    assert inputs.values.shape == inputs.known.shape == (len(rows), encoder.input_width)
    return tokens, inputs


# ---- plain loops


def standard(variable: int, value: float, modality: Modality = LABS, clip: float = 5.0) -> float:
    return min(max((value - modality.mean[variable]) / modality.std[variable], -clip), clip)


def binned(
    events: list[Event], row: int, resolution: float | None
) -> list[tuple[float, dict[int, tuple[float, float]]]]:
    """Steps of a row, the oldest first: hours of its latest event, and (value, hours) by variable."""
    mine = [e for e in events if e[0] == row]
    timed = [e[1] for e in mine if not math.isnan(e[1])]
    oldest = max(timed, default=0.0)
    grid: dict[float, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for _, hours, variable, value in mine:
        at = oldest if math.isnan(hours) else hours
        step = at if resolution is None else at // resolution
        grid[step][variable].append((standard(variable, value), at))
    steps = []
    for step in sorted(grid, reverse=True):
        cells = {v: (sum(x for x, _ in got) / len(got), min(h for _, h in got)) for v, got in grid[step].items()}
        steps.append((min(h for _, h in cells.values()), cells))
    return steps


def grud(encoder: SeriesEncoder, events: list[Event], row: int, resolution: float | None) -> Tensor:
    """GRU-D of one row as its paper has it, a step and a variable at a time."""
    cell: Any = encoder.body
    width, hidden = len(LABS.items), cell.hidden
    h, steps = torch.zeros(hidden, dtype=torch.float64), binned(events, row, resolution)
    since, before = [0.0] * width, steps[0][0] if steps else 0.0
    last: list[float] = [0.0] * width

    def fade(days: list[float]) -> Tensor:
        z = cell.state_decay.weight @ torch.tensor(days, dtype=torch.float64) + cell.state_decay.bias
        return torch.exp(-torch.clamp(z, min=0))

    for hours, cells in steps:
        since = [s + (before - hours) / 24 for s in since]
        x, m = [], []
        for v in range(width):
            gamma = torch.exp(-torch.clamp(cell.value_decay[v] * since[v] + cell.value_bias[v], min=0))
            held = gamma * last[v]
            x.append(torch.tensor(cells[v][0], dtype=torch.float64) if v in cells else held)
            m.append(float(v in cells))
        h = fade(since) * h
        drive = cell.read.weight @ torch.cat([torch.stack(x), torch.tensor(m, dtype=torch.float64)]) + cell.read.bias
        gates = torch.sigmoid(drive[: 2 * hidden] + cell.gates.weight @ h)
        r, z = gates[:hidden], gates[hidden:]
        candidate = torch.tanh(drive[2 * hidden :] + cell.candidate.weight @ (r * h))
        h = (1 - z) * h + z * candidate
        since = [0.0 if v in cells else since[v] for v in range(width)]
        last = [cells[v][0] if v in cells else last[v] for v in range(width)]
        before = hours
    ended: Tensor = fade([s + before / 24 for s in since]) * h
    return ended


def triplets(encoder: SeriesEncoder, events: list[Event], row: int, resolution: float | None) -> Tensor:
    """The transformer of one row alone: no padding, no mask, attention spelled out."""
    body: Any = encoder.body
    cells = [(v, *cell) for _, step in binned(events, row, resolution) for v, cell in step.items()]
    if not cells:
        return torch.zeros(12, dtype=torch.float64)
    x = torch.stack(
        [
            body.embedding.weight[v]
            + body.value(torch.tensor([value], dtype=torch.float64))
            + body.time(torch.tensor([math.log1p(hours)], dtype=torch.float64))
            for v, value, hours in cells
        ]
    )
    for block in body.blocks:
        heads = []
        q, k, v = block.qkv(block.norm(x)).chunk(3, 1)
        size = q.shape[1] // block.heads
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), 1) @ v[:, part])
        x = x + block.out(torch.cat(heads, 1))
        x = x + block.mlp(x)
    x = body.norm(x)
    share = torch.softmax(body.pool.score(torch.tanh(body.pool.hidden(x))).squeeze(1), 0)
    pooled: Tensor = share @ x
    return pooled


PLAIN: dict[Cell, Callable[[SeriesEncoder, list[Event], int, float | None], Tensor]] = {
    "grud": grud,
    "triplets": triplets,
}


def plain(encoder: SeriesEncoder, events: list[Event], rows: list[int], resolution: float | None) -> Tensor:
    cell: Cell = "triplets" if hasattr(encoder.body, "blocks") else "grud"
    tokens: Tensor = encoder.head(torch.stack([PLAIN[cell](encoder, events, row, resolution) for row in rows]))
    return tokens


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("resolution", [1.0, 6.0, 0.25, None])
def test_tokens_and_gradients_are_those_of_plain_loops(cell: Cell, resolution: float | None) -> None:
    encoder, slow = build(cell, resolution=resolution), build(cell, resolution=resolution).double()
    rows = [*ROWS, 5]  # one of them without elements
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    got, _ = run(encoder, EVENTS, rows)
    expected = plain(slow, EVENTS, rows, resolution)
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    (got * weight).sum().backward()  # type: ignore[no-untyped-call]
    (expected * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in encoder.parameters())
    for p, q in zip(encoder.parameters(), slow.parameters(), strict=True):
        assert p.grad is not None
        grad = torch.zeros_like(q) if q.grad is None else q.grad
        torch.testing.assert_close(p.grad, grad.float(), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 50).map(lambda k: k / 4) | st.just(NAN),
            st.integers(0, 2),
            st.floats(-4, 4, width=16),
        ),
        max_size=20,
    ),
    st.sampled_from(CELLS),
    st.sampled_from([1.0, None]),
)
def test_ragged_batches_are_those_of_plain_loops(events: list[Event], cell: Cell, resolution: float | None) -> None:
    events = sorted(events, key=lambda e: e[0])
    rows = sorted({e[0] for e in events} | {2})
    encoder = build(cell, resolution=resolution)
    got, _ = run(encoder, events, rows)
    slow = build(cell, resolution=resolution).double()
    torch.testing.assert_close(got, plain(slow, events, rows, resolution).float(), rtol=1e-4, atol=1e-4)


# ---- the contract


def test_it_is_the_default_of_its_kind_and_others_are_refused() -> None:
    built = default_encoder(LABS, 8)
    assert isinstance(built, SeriesEncoder)
    assert built.input_width == 3
    with pytest.raises(ValueError, match="reads series"):
        SeriesEncoder(Modality("v", "vector", ("a",), (0.0,), (1.0,)), 8)
    with pytest.raises(ValueError, match="no mean and std"):
        SeriesEncoder(Modality("v", "series", ("a",)), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstm"}, "'lstm' is not one of grud, triplets"),
        ({"cell": "triplets", "heads": 5}, "not divisible by 5"),
        ({"cell": "triplets", "layers": 0}, "layers"),
        ({"max_events": 0}, "max_events"),
        ({"resolution": 0.0}, "resolution"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeriesEncoder(LABS, 8, **options)


def test_elements_that_are_no_series_are_refused() -> None:
    with pytest.raises(ValueError, match="one value and one variable"):
        build("grud")(Elements(torch.tensor([0]), torch.zeros(1), torch.zeros(1)), torch.tensor([0]))


def test_the_input_is_the_last_value_of_each_variable() -> None:
    # two values of the same time: the larger is the last
    tied: list[Event] = [(0, 5.0, 0, 2.0), (0, 2.0, 0, 1.0), (0, 2.0, 0, 4.0), (1, 9.0, 2, 1e30)]
    _, inputs = run(build("grud"), tied, [0, 1, 4])
    assert inputs.values.tolist() == [[1.5, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]]
    assert inputs.known.tolist() == [[True, False, False], [False, False, True], [False, False, False]]
    _, inputs = run(build("triplets"), EVENTS, ROWS)
    last = {(row, v): standard(v, value) for row, _, v, value in EVENTS}  # EVENTS are in the order of time
    for k, row in enumerate(ROWS):
        assert inputs.known[k].tolist() == [(row, v) in last for v in range(3)]
        assert inputs.values[k].tolist() == [last.get((row, v), 0.0) for v in range(3)]


@pytest.mark.parametrize("cell", CELLS)
def test_without_elements_every_parameter_gets_a_gradient(cell: Cell) -> None:
    for rows in ([], [1, 4]):
        encoder = build(cell)
        tokens, inputs = run(encoder, [], rows)
        assert tokens.isfinite().all()
        assert not inputs.known.any()
        tokens.sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_one_event_gives_every_parameter_a_gradient(cell: Cell) -> None:
    encoder = build(cell)
    tokens, _ = run(encoder, [(1, 2.0, 0, 1.5)], [1])
    (tokens * torch.arange(8)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_no_variable_is_left(cell: Cell) -> None:
    tokens, inputs = run(build(cell, modality=Modality("labs", "series")), [], [0, 3])
    assert inputs.values.shape == (2, 0)
    assert tokens.isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_depends_on_its_own_events_alone(cell: Cell) -> None:
    encoder = build(cell)
    together, _ = run(encoder, EVENTS, [0, 1, 2, 3])
    for row in (0, 1, 2, 3):
        alone, _ = run(encoder, [e for e in EVENTS if e[0] == row], [row])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("resolution", [1.0, None])
def test_the_order_in_which_events_come_does_not_matter(cell: Cell, resolution: float | None) -> None:
    at_once: list[Event] = [(0, 5.0, v, x) for v, x in ((0, 1.0), (1, 2.0), (0, 3.0), (2, -1.0))]
    encoder, rng = build(cell, resolution=resolution), np.random.default_rng(0)
    for events in (at_once, EVENTS):
        expected, inputs = run(encoder, events, ROWS)
        for _ in range(5):
            # packed elements are ascending by row, in any order inside it
            mixed = sorted((events[k] for k in rng.permutation(len(events))), key=lambda e: e[0])
            got, known = run(encoder, mixed, ROWS)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
            assert known.values.equal(inputs.values)


@pytest.mark.parametrize("cell", CELLS)
def test_time_value_and_variable_all_count(cell: Cell) -> None:
    encoder = build(cell)
    base, _ = run(encoder, EVENTS[6:7], [2])
    others: list[Event] = [(2, 40.0, 1, 0.25), (2, 11.0, 2, 0.25), (2, 11.0, 1, 1.0)]
    for other in others:
        assert not torch.allclose(base, run(encoder, [other], [2])[0], atol=1e-3)
    # a value that was measured to be the mean is not the same as none
    assert not torch.allclose(base, run(encoder, [*EVENTS[6:7], (2, 11.0, 0, 1.0)], [2])[0], atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_latest_values_are_read(cell: Cell) -> None:
    limited, free = build(cell, max_events=2), build(cell, max_events=None)
    # of row 0 the last two hourly values, of row 3 those of 7.0 to 7.9 hours (two variables) less the older one
    kept = [EVENTS[3], EVENTS[4], EVENTS[5], EVENTS[6], EVENTS[9], EVENTS[10]]
    torch.testing.assert_close(run(limited, EVENTS, ROWS)[0], run(free, kept, ROWS)[0])
    assert run(limited, EVENTS, ROWS)[1].values.equal(run(free, EVENTS, ROWS)[1].values)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_bfloat16_is_finite_and_close(cell: Cell, way: str) -> None:
    rng = np.random.default_rng(0)
    hours = np.sort(rng.uniform(0, 2000, 300))[::-1]
    events: list[Event] = [(0, float(h), int(rng.integers(3)), float(rng.normal(0, 30))) for h in hours]
    events += [(2, 0.0, 0, 1e38), (2, 0.0, 1, -1e38)]
    exact, _ = run(build(cell), events, [0, 1, 2])
    encoder = build(cell)
    if way == "weights":
        encoder = encoder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        tokens, inputs = run(encoder, events, [0, 1, 2])
    tokens.float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.isfinite().all()
    assert inputs.values.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    # bfloat16 keeps 8 bits; through some hundred steps and a norm a tenth of a standard deviation remains
    assert (tokens.float() - exact).abs().mean() < 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_batch_gives_the_same_bits(cell: Cell) -> None:
    made = []
    for _ in range(2):
        encoder = build(cell)
        tokens, _ = run(encoder, EVENTS, ROWS)
        tokens[:, 0].sum().backward()  # type: ignore[no-untyped-call]
        made.append([tokens.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    assert all(a.equal(b) for a, b in zip(*made, strict=True))


def test_an_unobserved_sample_has_no_token() -> None:
    vector = Modality("age", "vector", ("years",), (50.0,), (10.0,))
    batch = PatientBatch(
        {
            "labs": elements([e for e in EVENTS if e[0] == 2]),
            "age": Elements(torch.tensor([0, 1]), torch.zeros(2), torch.tensor([[40.0], [60.0]])),
        },
        torch.tensor([[False, True], [False, True], [True, False]]),
        torch.zeros(3, 1),
        torch.ones(3, 1, dtype=torch.bool),
        torch.arange(3),
    )
    encoded = encode(nn.ModuleDict({"labs": build("grud"), "age": VectorEncoder(vector, 8)}), batch)
    assert encoded.row.tolist() == [2, 0, 1]
    assert encoded.tokens.shape == (3, 8)


@given(st.lists(st.integers(0, 600), max_size=60))
def test_buckets_hold_every_row_that_has_tokens_and_little_padding(lengths: list[int]) -> None:
    groups = buckets(torch.tensor(lengths, dtype=torch.long))
    rows = [int(r) for group, _ in groups for r in group]
    assert sorted(rows) == [r for r, n in enumerate(lengths) if n]
    for group, longest in groups:
        assert longest == max(lengths[int(r)] for r in group)
        assert all(lengths[int(r)] >= 0.8 * longest - 4 for r in group)


# ---- it learns


def trends(n: int, seed: int) -> tuple[list[Event], np.ndarray[Any, Any]]:
    """Values of one variable that rise or fall with time; the set of values is drawn the same for both."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    events: list[Event] = []
    for row in range(n):
        count = int(rng.integers(4, 9))
        values = np.sort(rng.normal(0, 1, count))[:: 1 if label[row] else -1] + rng.normal(0, 0.3, count)
        hours = np.sort(rng.uniform(0, 24, count))[::-1]
        events += [(row, float(h), 0, float(v)) for h, v in zip(hours, values, strict=True)]
    return events, label


def bag(events: list[Event], n: int) -> np.ndarray[Any, Any]:
    mine = [[e[3] for e in events if e[0] == row] for row in range(n)]
    return np.array([[np.mean(v), np.min(v), np.max(v), np.std(v), len(v)] for v in mine])


@pytest.mark.parametrize("cell", CELLS)
def test_a_trend_is_learned_that_no_set_of_values_tells(cell: Cell) -> None:
    n, modality = 300, Modality("labs", "series", ("a",), (0.0,), (1.0,))
    (events, label), (unseen, truth) = trends(n, 0), trends(n, 1)
    torch.manual_seed(0)
    encoder = SeriesEncoder(modality, 16, cell=cell, dropout=0.0, layers=1)
    head = nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    rows, target = torch.arange(n), torch.tensor(label, dtype=torch.float32)
    for _ in range(80):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(head(encoder(elements(events), rows)[0])[:, 0], target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        score = head(encoder.eval()(elements(unseen), rows)[0])[:, 0].numpy()
        times = [(row, 24.0 - hours, v, value) for row, hours, v, value in unseen]
        reversed_score = head(encoder(elements(times), rows)[0])[:, 0].numpy()
    # by chance an AUROC of 300 has a standard deviation of 0.033
    assert roc_auc_score(truth, score) > 0.9
    assert roc_auc_score(truth, reversed_score) < 0.2
    blind = HistGradientBoostingClassifier(max_iter=50, random_state=0).fit(bag(events, n), label)
    assert abs(roc_auc_score(truth, blind.predict_proba(bag(unseen, n))[:, 1]) - 0.5) < 0.13
