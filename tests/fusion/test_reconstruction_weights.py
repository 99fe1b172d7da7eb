"""`Encoded.weights`: the reconstruction is the weighted mean, token by token, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmnar_lightning.fusion import EvidenceFusion, Fusion, LeaveOneOutReconstruction, MMNARFusion
from mmnar_lightning.objectives import global_count
from mmnar_lightning.records import Encoded, FusionShape, Inputs

D, ROWS = 8, 200
SHAPE = FusionShape(D, ("age", "labs", "film"), (2, 3, 0))


def pack(rows: int = ROWS) -> Encoded:
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(rows, 3, generator=generator) < 0.6
    modality, row = observed.T.nonzero(as_tuple=True)
    inputs: list[Inputs | None] = []
    for m in range(2):
        values = torch.randn(int(observed[:, m].sum()), SHAPE.inputs[m], generator=generator)
        inputs.append(Inputs(values, values > -1))
    weights = torch.rand(rows, 3, generator=generator) * 4
    # what is not observed has no weight worth reading
    weights[~observed] = torch.nan
    tokens = torch.randn(len(row), D, generator=generator)
    return Encoded(tokens, row, modality, observed, (*inputs, None), weights)


def _fuse(slots: Tensor, observed: Tensor) -> Tensor:
    return (slots * observed[:, :, None]).sum(1)


def _error(encoded: Encoded, i: int, m: int, guess: Any, latent: Any) -> float | None:
    """Squared error of one token, by hand; None where nothing of it is known."""
    inputs = encoded.inputs[m]
    if inputs is None:
        return float((latent(m)[0] - encoded.dense()[i, m]).square().mean())
    place = int(encoded.observed[:i, m].sum())
    known = inputs.known[place]
    return float((guess(m)[0] - inputs.values[place])[known].square().mean()) if known.any() else None


def _mean(encoded: Encoded, errors: dict[tuple[int, int], float]) -> tuple[float, float]:
    assert encoded.weights is not None
    w = np.array([float(encoded.weights[at]) for at in errors])
    values = np.array(list(errors.values()))
    return float(np.average(values, weights=w)), float(values.mean())


@pytest.mark.parametrize("hidden", [None, 1])
def test_leaving_one_out_is_weighted_token_by_token(hidden: int | None) -> None:
    torch.manual_seed(0)
    encoded = pack()
    options: dict[str, Any] = {"target": "input", "contrast": False, "missingness": "none"}
    part = LeaveOneOutReconstruction(SHAPE, hidden_per_row=hidden, **options)
    h = _fuse(encoded.dense(), encoded.observed)

    def term(given: Encoded) -> float:
        return float(part(given, given.observed, h, h, _fuse, global_count)["reconstruction"])

    with torch.no_grad():
        drawn = [term(encoded) for _ in range(1 if hidden is None else 60)]
        errors: dict[tuple[int, int], float] = {}
        for i, m in encoded.observed.nonzero().tolist():
            rest = encoded.observed[i].clone()
            rest[m] = False
            if rest.any():
                at = _fuse(encoded.dense()[i : i + 1], rest[None])
                error = _error(
                    encoded, i, m, lambda m, at=at: part.input[str(m)](at), lambda _, at=at: part.latent["2"](at)
                )
                errors |= {} if error is None else {(i, m): error}
        weighted, plain = _mean(encoded, errors)
        assert abs(weighted - plain) > 0.005, "weights that change nothing would show nothing"
        # drawn: a mean of 60 ratios of about 150 weighted errors each
        assert np.mean(drawn) == pytest.approx(weighted, rel=1e-4 if hidden is None else 0.03)
        if hidden is None:
            assert term(replace(encoded, weights=None)) == pytest.approx(plain, rel=1e-4)


def test_evidence_is_weighted_token_by_token() -> None:
    torch.manual_seed(0)
    encoded, fusion = pack(), EvidenceFusion(SHAPE).eval()
    with torch.no_grad():
        fused = fusion(encoded)
        mean = fused.views["posterior_mean"]
        nothing = torch.zeros(ROWS, 1)
        found = fusion.auxiliary(encoded, fused, nothing, nothing > 0, global_count)["reconstruction"]
        errors: dict[tuple[int, int], float] = {}
        for i, m in encoded.observed.nonzero().tolist():
            error = _error(encoded, i, m, *[lambda m, i=i: fusion.decoders[m](mean[i : i + 1])] * 2)
            errors |= {} if error is None else {(i, m): error}
    weighted, plain = _mean(encoded, errors)
    assert abs(weighted - plain) > 0.005
    assert float(found) == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize("cls", [MMNARFusion, EvidenceFusion])
def test_only_the_reconstruction_is_weighted(cls: type[Fusion]) -> None:
    torch.manual_seed(0)
    encoded, fusion = pack(), cls(SHAPE, reconstruction="input").eval()  # type: ignore[call-arg]
    nothing = torch.zeros(ROWS, 1)

    def terms(given: Encoded) -> dict[str, float]:
        named = fusion.auxiliary(given, fusion(given), nothing, nothing > 0, global_count)
        return {name: float(term.detach()) for name, term in named.items()}

    weighted, plain = terms(encoded), terms(replace(encoded, weights=None))
    assert {name for name in plain if weighted[name] != plain[name]} == {"reconstruction"}
    alike = terms(replace(encoded, weights=torch.full_like(encoded.observed, 3, dtype=torch.float32)))
    assert alike == pytest.approx(plain, rel=1e-5)
