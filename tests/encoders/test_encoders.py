from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mmnar_lightning.encoders import CodesEncoder, Encoder, VectorEncoder, default_encoder, encode, encoders
from mmnar_lightning.records import UNKNOWN, Elements, Modality, PatientBatch

LABS = Modality("labs", "vector", ("a", "b", "c"), (1.0, 0.0, -2.0), (2.0, 1.0, 0.5))
CODES = Modality("codes", "codes", (UNKNOWN, "x", "y", "z"), (0.1, 0.5, 0.2, 0.01), (0.3, 0.5, 0.4, 0.1))
NAN = float("nan")


def vectors(row: list[int], values: list[list[float]], hours: list[float] | None = None) -> Elements:
    return Elements(
        torch.tensor(row, dtype=torch.long),
        torch.tensor(hours or [0.0] * len(row), dtype=torch.float32),
        torch.tensor(values, dtype=torch.float32).reshape(len(row), -1 if row else 3),
    )


def codes(row: list[int], values: list[int], hours: list[float] | None = None) -> Elements:
    return Elements(
        torch.tensor(row, dtype=torch.long),
        torch.tensor(hours or [NAN] * len(row), dtype=torch.float32),
        torch.tensor(values, dtype=torch.long),
    )


def run(encoder: Encoder, elements: Elements, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, inputs = encoder.eval()(elements, torch.tensor(rows, dtype=torch.long))
    assert inputs is not None
    assert tokens.shape == (len(rows), encoder.width)
    assert inputs.values.shape == inputs.known.shape == (len(rows), encoder.input_width)
    return tokens, inputs.values, inputs.known


def test_vector_is_standardised_with_the_training_statistics() -> None:
    table = np.random.default_rng(0).normal(3, 4, (500, 3))
    scaler = StandardScaler().fit(table)
    modality = Modality("v", "vector", ("a", "b", "c"), tuple(scaler.mean_), tuple(scaler.scale_))
    _, values, known = run(VectorEncoder(modality, 8), vectors([0, 2], table[:2].tolist()), [0, 2])
    np.testing.assert_allclose(values.numpy(), scaler.transform(table[:2]), rtol=1e-5, atol=1e-6)
    assert known.all()


def test_vector_missing_is_zero_and_wild_is_clipped() -> None:
    encoder = VectorEncoder(LABS, 8, clip=4.0)
    tokens, values, known = run(encoder, vectors([1, 3], [[1e30, NAN, -2.0], [float("-inf"), 0.5, NAN]]), [1, 3])
    assert values.tolist() == [[4.0, 0.0, 0.0], [-4.0, 0.5, 0.0]]
    assert known.tolist() == [[True, False, True], [True, True, False]]
    assert tokens.isfinite().all()


def test_vector_sees_that_a_value_is_missing_not_only_the_mean() -> None:
    encoder = VectorEncoder(LABS, 8)
    tokens, _, _ = run(encoder, vectors([0, 1], [[1.0, 0.0, -2.0], [1.0, NAN, -2.0]]), [0, 1])
    assert not torch.allclose(tokens[0], tokens[1])


def test_vector_several_elements_are_averaged() -> None:
    encoder = VectorEncoder(LABS, 8)
    values = [[1.0, 2.0, NAN], [3.0, NAN, NAN], [5.0, 1.0, 0.0]]
    tokens, inputs, known = run(encoder, vectors([0, 0, 4], values), [0, 4])
    assert inputs[0].tolist() == [0.5, 2.0, 0.0]
    assert known[0].tolist() == [True, True, False]
    # the mean of the elements' hidden vectors, and a row with one element is that element
    twice, _, _ = run(encoder, vectors([0, 0], [values[2]] * 2), [0])
    torch.testing.assert_close(twice[0], tokens[1])
    swapped, _, _ = run(encoder, vectors([0, 0, 4], [values[1], values[0], values[2]]), [0, 4])
    torch.testing.assert_close(swapped, tokens)


def test_vector_hours_before_are_read_only_if_asked() -> None:
    near, far, unknown = (vectors([0], [[1.0, 1.0, 1.0]], [h]) for h in (1.0, 90.0, NAN))
    blind, timed = VectorEncoder(LABS, 8), VectorEncoder(LABS, 8, hours_before=True)
    torch.testing.assert_close(run(blind, near, [0])[0], run(blind, far, [0])[0])
    assert not torch.allclose(run(timed, near, [0])[0], run(timed, far, [0])[0])
    assert run(timed, unknown, [0])[0].isfinite().all()


@pytest.mark.parametrize("options", [{}, {"depth": 3, "hidden": 16, "hours_before": True, "dropout": 0.0}])
def test_vector_without_rows_still_gives_every_parameter_a_gradient(options: dict[str, float]) -> None:
    encoder = VectorEncoder(LABS, 8, **options)  # type: ignore[arg-type]
    tokens, _ = encoder(vectors([], []), torch.zeros(0, dtype=torch.long))
    tokens.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_vector_without_items() -> None:
    tokens, values, _ = run(
        VectorEncoder(Modality("v", "vector"), 8),
        Elements(torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2, 0)),
        [0, 1],
    )
    assert values.shape == (2, 0)
    assert tokens.isfinite().all()


def test_statistics_are_needed_and_options_checked() -> None:
    with pytest.raises(ValueError, match="no mean and std"):
        VectorEncoder(Modality("labs", "vector", ("a",)), 8)
    with pytest.raises(ValueError, match="std is not positive for 1 items, the first 'b'"):
        VectorEncoder(Modality("labs", "vector", ("a", "b"), (0.0, 0.0), (1.0, 0.0)), 8)
    with pytest.raises(ValueError, match="depth"):
        VectorEncoder(LABS, 8, depth=0)
    with pytest.raises(ValueError, match="width"):
        VectorEncoder(LABS, 0)
    with pytest.raises(ValueError, match="width 3"):
        VectorEncoder(LABS, 8)(Elements(torch.tensor([0]), torch.zeros(1), torch.zeros(1, 2)), torch.tensor([0]))
    with pytest.raises(ValueError, match="reads codes"):
        CodesEncoder(LABS, 8)
    with pytest.raises(ValueError, match="mean, sum"):
        CodesEncoder(CODES, 8, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start with <unknown>"):
        CodesEncoder(Modality("c", "codes", ("x",), (0.5,), (0.5,)), 8)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.floats(0, 1000, width=32)), max_size=25),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([None, 24.0]),
)
def test_codes_bag_is_its_formula(
    occurrences: list[tuple[int, int, float]], pooling: Literal["mean", "sum"], half_life: float | None
) -> None:
    occurrences = sorted(occurrences)
    rows = sorted({r for r, _, _ in occurrences})
    torch.manual_seed(0)
    encoder = CodesEncoder(CODES, 8, pooling=pooling, half_life=half_life).eval()
    table = encoder.embedding.weight.detach().double().numpy()
    bags = []
    for row in rows:
        mine = [
            (c, 1.0 if half_life is None else 2.0 ** -min(h / half_life, 60)) for r, c, h in occurrences if r == row
        ]
        total = sum(w for _, w in mine) if pooling == "mean" else 1.0
        bags.append(sum(table[c] * w for c, w in mine) / total)
    elements = codes([o[0] for o in occurrences], [o[1] for o in occurrences], [o[2] for o in occurrences])
    tokens, values, known = run(encoder, elements, rows)
    if rows:
        expected = encoder.head(encoder.body(torch.tensor(np.array(bags), dtype=torch.float32)))
        torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-4)
    assert known.all()
    for i, row in enumerate(rows):
        for c in range(4):
            present = float(any(r == row and code == c for r, code, _ in occurrences))
            expected_value = np.clip((present - CODES.mean[c]) / CODES.std[c], -5, 5)
            assert values[i, c].item() == pytest.approx(expected_value, rel=1e-5)


def test_codes_unknown_hours_do_not_decay_and_unknown_codes_are_counted() -> None:
    encoder = CodesEncoder(CODES, 8, half_life=5.0)
    now, never_said = codes([0, 0], [1, 2], [0.0, 0.0]), codes([0, 0], [1, 2])
    torch.testing.assert_close(run(encoder, now, [0])[0], run(encoder, never_said, [0])[0])
    unknown, total = encoder.unknown_counts(codes([0, 0, 1], [0, 2, 0]))
    assert (int(unknown), total) == (2, 3)
    with pytest.raises(ValueError, match="indices"):
        encoder(vectors([0], [[1.0, 1.0, 1.0]]), torch.tensor([0]))


def test_codes_without_rows_and_without_inputs() -> None:
    encoder = CodesEncoder(CODES, 8, inputs=False)
    tokens, inputs = encoder(codes([], []), torch.zeros(0, dtype=torch.long))
    tokens.sum().backward()
    assert inputs is None
    assert encoder.input_width == 0
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("kind", ["series", "text", "image"])
def test_a_kind_without_encoder_is_an_error_that_lists_those_with_one(kind: str) -> None:
    if kind in encoders():
        pytest.skip(f"there is an encoder for {kind}")
    with pytest.raises(ValueError, match=f"no encoder for kind '{kind}'.*codes, .*vector"):
        default_encoder(Modality("notes", kind), 8)  # type: ignore[arg-type]


def batch() -> PatientBatch:
    observed = torch.tensor([[True, False], [False, False], [True, True], [False, True]])
    return PatientBatch(
        {"labs": vectors([0, 2], [[1.0, NAN, 2.0], [0.0, 1.0, 2.0]]), "codes": codes([2, 2, 3], [1, 3, 0])},
        observed,
        torch.zeros(4, 1),
        torch.ones(4, 1, dtype=torch.bool),
        torch.arange(4),
    )


def test_encode_packs_by_modality_then_row_and_computes_nothing_else() -> None:
    built = nn.ModuleDict({m.name: default_encoder(m, 8) for m in (CODES, LABS)}).eval()
    encoded = encode(built, batch())
    assert encoded.row.tolist() == [0, 2, 2, 3]
    assert encoded.modality.tolist() == [0, 0, 1, 1]
    assert encoded.tokens.shape == (int(encoded.observed.sum()), 8)
    assert [i.values.shape for i in encoded.inputs if i is not None] == [(2, 3), (2, 4)]
    labs, _ = built["labs"](batch().elements["labs"], torch.tensor([0, 2]))
    torch.testing.assert_close(encoded.tokens[:2], labs)
    assert (encoded.dense()[1] == 0).all()


def test_encode_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="encoders for labs; the batch holds labs, codes"):
        encode({"labs": VectorEncoder(LABS, 8)}, batch())
