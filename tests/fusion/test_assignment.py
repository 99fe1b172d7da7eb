from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from mmnar_lightning.fusion import AssignmentModel, EvidenceFusion, Fusion, LeaveOneOutReconstruction, MMNARFusion
from mmnar_lightning.objectives import global_count
from mmnar_lightning.records import Encoded, FusionShape, Inputs

D = 8
SHAPE = FusionShape(D, ("age", "labs", "film"), (2, 3, 0))


def pack(observed: Tensor, age: Tensor | None = None, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    modality, row = observed.T.nonzero(as_tuple=True)
    ages = torch.randn(len(observed), 2, generator=generator) if age is None else age
    labs = torch.randn(int(observed[:, 1].sum()), 3, generator=generator)
    inputs = (
        Inputs(ages[observed[:, 0]], torch.ones(int(observed[:, 0].sum()), 2) > 0),
        Inputs(labs, labs > -1),
        None,
    )
    return Encoded(torch.randn(len(row), D, generator=generator), row, modality, observed, inputs)


def ordered_by_age(rows: int, seed: int) -> tuple[Encoded, np.ndarray]:
    """Labs at random given age, films at random; the true probabilities [rows, 3]."""
    rng = np.random.default_rng(seed)
    age = rng.normal(size=(rows, 2))
    pi = np.stack([np.ones(rows), expit(0.5 + 1.5 * age[:, 0]), np.full(rows, 0.3)], 1)
    return pack(torch.tensor(rng.random(pi.shape) < pi), torch.tensor(age, dtype=torch.float32), seed), pi


def test_it_learns_the_probabilities_within_the_steps_of_a_training_and_weighs_by_them() -> None:
    model = AssignmentModel(SHAPE, ["age"], clip=5.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(300):
        _, terms = model(ordered_by_age(256, step)[0], global_count)
        optimizer.zero_grad()
        terms["assignment"].backward()
        optimizer.step()
    encoded, pi = ordered_by_age(2000, 1000)
    weight, terms = model(encoded, global_count)
    expected = np.minimum(encoded.observed.float().mean(0).numpy() / pi, 5.0)
    assert np.corrcoef(weight[:, 1].numpy(), expected[:, 1])[0, 1] > 0.97
    np.testing.assert_allclose(weight[:, 1].mean(), expected[:, 1].mean(), rtol=0.1)
    assert float(weight[:, 2].std()) < 0.25, "films go by nothing that is known"
    assert weight[:, 0].eq(1).all()
    observed = encoded.observed[:, 1].numpy()
    w = weight[:, 1].numpy()[observed]
    assert float(terms["ipw_ess/labs"]) == pytest.approx(w.sum() ** 2 / (w**2).sum() / len(w), rel=1e-4)
    assert set(terms) == {"assignment", "ipw_ess/labs", "ipw_ess/film", "ipw_clipped"}
    assert 0 < float(terms["ipw_clipped"]) < 0.2
    # weighted, those with labs are as old as everyone; unweighted they are not
    known = encoded.inputs[0]
    assert known is not None
    age = known.values[:, 0].numpy()
    assert abs(np.average(age[observed], weights=w) - age.mean()) < 0.1
    assert age[observed].mean() - age.mean() > 0.3


def test_nothing_flows_back_but_into_the_model_itself() -> None:
    observed = torch.rand(20, 3) < 0.6
    observed[:, 0] = True
    encoded = pack(observed, torch.randn(20, 2).requires_grad_())
    model = AssignmentModel(SHAPE, ["age"])
    nn.init.normal_(model.head.weight)
    weight, terms = model(encoded, global_count)
    assert not weight.requires_grad
    assert [name for name, term in terms.items() if term.requires_grad] == ["assignment"]
    terms["assignment"].backward()
    assert encoded.inputs[0] is not None
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["film"], "no modality 'film' with an input vector; there are: age, labs"),
        (["height"], "no modality 'height'"),
        ([], "at least one modality"),
    ],
)
def test_what_cannot_be_conditioned_on_is_an_error(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AssignmentModel(SHAPE, given)


def test_a_sample_without_what_everyone_has_is_an_error() -> None:
    observed = torch.ones(4, 3, dtype=torch.bool)
    observed[2, 0] = False
    with pytest.raises(ValueError, match="1 of 4 samples lack 'age'"):
        AssignmentModel(SHAPE, ["age"])(pack(observed), global_count)


def _fuse(slots: Tensor, observed: Tensor) -> Tensor:
    return (slots * observed[:, :, None]).sum(1)


@pytest.mark.parametrize("hidden", [None, 1])
def test_reconstruction_is_weighted_token_by_token(hidden: int | None) -> None:
    torch.manual_seed(0)
    observed = (torch.rand(200, 3) < 0.6).index_fill(1, torch.tensor([0]), True)
    encoded = pack(observed)
    part = LeaveOneOutReconstruction(
        SHAPE, target="input", contrast=False, missingness="none", ipw=["age"], hidden_per_row=hidden
    )
    assert part.assignment is not None
    nn.init.normal_(part.assignment.head.weight, std=0.1)
    weight, _ = part.assignment(encoded, global_count)
    assert float(weight.std()) > 0.1
    h = _fuse(encoded.dense(), observed)
    drawn = [
        part(encoded, observed, h, h, _fuse, global_count)["reconstruction"].item()
        for _ in range(1 if hidden is None else 60)
    ]
    above = below = plain = 0.0
    slots, count = encoded.dense(), 0
    for i in range(200):
        present = observed[i].nonzero().ravel().tolist()
        for m in present if len(present) > 1 else []:
            rest = observed[i].clone()
            rest[m] = False
            at = _fuse(slots[i : i + 1], rest[None])
            inputs, place = encoded.inputs[m], int(observed[:i, m].sum())
            if inputs is None:
                error = (part.latent[str(m)](at)[0] - slots[i, m]).square().mean()
            elif inputs.known[place].any():
                error = (part.input[str(m)](at)[0] - inputs.values[place])[inputs.known[place]].square().mean()
            else:
                continue
            w = float(weight[i, m])
            above, below, plain, count = above + w * error.item(), below + w, plain + error.item(), count + 1
    assert abs(above / below - plain / count) > 0.02, "weights that change nothing would show nothing"
    # drawn: a mean of 60 ratios of about 180 weighted errors each
    assert np.mean(drawn) == pytest.approx(above / below, rel=1e-4 if hidden is None else 0.03)


@pytest.mark.parametrize("cls", [MMNARFusion, EvidenceFusion])
def test_a_fusion_with_ipw_trains_its_assignment(cls: type[Fusion]) -> None:
    observed = (torch.rand(40, 3) < 0.6).index_fill(1, torch.tensor([0]), True)
    encoded = pack(observed)
    fusion = cls(SHAPE, reconstruction="input", ipw=["age"])  # type: ignore[call-arg]
    assert dict(fusion.own_weights) == {"assignment": 1.0}
    assert dict(cls(SHAPE).own_weights) == {}
    fused = fusion(encoded)
    terms = fusion.auxiliary(encoded, fused, torch.zeros(40, 1), torch.ones(40, 1) > 0, global_count)
    assert {"assignment", "ipw_ess/labs", "ipw_ess/film", "ipw_clipped"} < set(terms)
    terms["assignment"].backward()  # type: ignore[no-untyped-call]
    moved = {name for name, p in fusion.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all("assignment" in name for name in moved)
    with pytest.raises(ValueError, match="ipw weighs the reconstruction, and there is none"):
        cls(SHAPE, reconstruction="none", ipw=["age"])  # type: ignore[call-arg]
