from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor

from mmnar_lightning.fusion import EvidenceFusion
from mmnar_lightning.objectives import global_count
from mmnar_lightning.records import Encoded, FusionShape, Inputs

D, M, LATENT = 8, 3, 4
SHAPE = FusionShape(D, ("a", "b", "c"), (4, 0, 2))
OBSERVED = (torch.arange(8)[:, None] >> torch.arange(M)) & 1 == 1


def pack(observed: Tensor = OBSERVED, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    modality, row = observed.T.nonzero(as_tuple=True)
    inputs: list[Inputs | None] = []
    for m, width in enumerate(SHAPE.inputs):
        values = torch.randn(int(observed[:, m].sum()), width, generator=generator)
        inputs.append(Inputs(values, values > -0.8) if width else None)
    return Encoded(torch.randn(len(row), D, generator=generator), row, modality, observed, tuple(inputs))


def build(**options: Any) -> EvidenceFusion:
    torch.manual_seed(0)
    fusion = EvidenceFusion(SHAPE, latent=LATENT, **options).eval()
    for parameter in fusion.parameters():  # zeros would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return fusion


def compute(fusion: EvidenceFusion, encoded: Encoded) -> dict[str, Tensor]:
    B = len(encoded.observed)
    return fusion.auxiliary(encoded, fusion(encoded), torch.zeros(B, 1), torch.ones(B, 1) > 0, global_count)


def _mlp(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    hidden = p[f"{name}.0.weight"] @ x + p[f"{name}.0.bias"]
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return np.asarray(p[f"{name}.3.weight"] @ hidden + p[f"{name}.3.bias"])


@pytest.mark.parametrize("pattern", [True, False])
def test_evidence_is_its_equations(pattern: bool) -> None:
    """One row at a time in NumPy, over the observed modalities only; reconstruction and availability too."""
    fusion, encoded = build(pattern=pattern), pack()
    p = {name: value.double().numpy() for name, value in fusion.state_dict().items()}
    slots = encoded.dense().double().numpy()
    fused = fusion(encoded)
    errors, entropy = [], []
    for i in range(8):
        eta, precision = np.zeros(LATENT), np.ones(LATENT)
        seen = [m for m in range(M) if OBSERVED[i, m]]
        delta = OBSERVED[i].double().numpy()
        experts = [slots[i, m] @ p["weight"][m] + p["bias"][m] for m in seen]
        experts += [_mlp(p, "pattern", delta)] if pattern else []
        for expert in experts:
            eta, precision = eta + expert[:LATENT], precision + np.log1p(np.exp(expert[LATENT:]))
        mean = eta / precision
        np.testing.assert_allclose(fused.views["posterior_mean"][i].detach(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fused.views["posterior_precision"][i].detach(), precision, rtol=1e-4)
        assert float(fused.views["uncertainty"][i]) == pytest.approx((1 / precision).mean(), rel=1e-4)
        expected = _mlp(p, "out", np.concatenate([mean, np.log(precision)]))
        np.testing.assert_allclose(fused.patient[i].detach(), expected, rtol=1e-4, atol=1e-4)
        for m in seen:
            guess, inputs = _mlp(p, f"decoders.{m}", mean), encoded.inputs[m]
            place = int(OBSERVED[:i, m].sum())
            if inputs is None:
                errors.append(((guess - slots[i, m]) ** 2).mean())
            elif inputs.known[place].any():
                errors.append(((guess - inputs.values[place].numpy())[inputs.known[place]] ** 2).mean())
        logits = _mlp(p, "availability", mean)
        entropy += [np.log1p(np.exp(-x if there else x)) for x, there in zip(logits, delta, strict=True)]
    terms = compute(fusion, encoded)
    assert set(terms) == {"reconstruction", "availability"}
    assert terms["reconstruction"].item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert terms["availability"].item() == pytest.approx(np.mean(entropy), rel=1e-4)


def test_availability_from_values_leaves_out_what_is_asked_for() -> None:
    """One row and one modality at a time in NumPy: evidence of the others alone, no pattern's expert."""
    fusion, encoded = build(availability="values"), pack()
    p = {name: value.double().numpy() for name, value in fusion.state_dict().items()}
    slots = encoded.dense().double().numpy()
    entropy = []
    for i in range(8):
        for m in range(M):
            experts = [slots[i, j] @ p["weight"][j] + p["bias"][j] for j in range(M) if OBSERVED[i, j] and j != m]
            eta = sum((e[:LATENT] for e in experts), np.zeros(LATENT))
            precision = sum((np.log1p(np.exp(e[LATENT:])) for e in experts), np.ones(LATENT))
            logit = _mlp(p, "availability", eta / precision)[m]
            entropy.append(np.log1p(np.exp(-logit if OBSERVED[i, m] else logit)))
    assert compute(fusion, encoded)["availability"].item() == pytest.approx(np.mean(entropy), rel=1e-4)


def logits_of(fusion: EvidenceFusion, encoded: Encoded) -> Tensor:
    """Logits of δ [B, M] that the availability's loss was computed from."""
    assert fusion.availability is not None
    fused = fusion(encoded)
    if fusion.from_values:
        return fusion.availability(fused.views["mean_of_others"]).diagonal(dim1=1, dim2=2)  # type: ignore[no-any-return]
    return fusion.availability(fused.views["posterior_mean"])  # type: ignore[no-any-return]


@pytest.mark.parametrize("availability", ["posterior", "values"])
def test_only_values_are_blind_to_what_is_asked_for(availability: Any) -> None:
    """The same patients with and without modality m: an assignment model must say the same of m."""
    fusion = build(availability=availability)
    whole = pack(torch.ones(32, M, dtype=torch.bool))
    gaps = []
    for m in range(M):
        kept = whole.modality != m
        observed = whole.observed.clone()
        observed[:, m] = False
        part = replace(
            whole,
            tokens=whole.tokens[kept],
            row=whole.row[kept],
            modality=whole.modality[kept],
            observed=observed,
            inputs=(),
        )
        gap = logits_of(fusion, whole)[:, m] - logits_of(fusion, part)[:, m]
        gaps.append(gap.detach().abs().max().item())
    if availability == "values":
        assert max(gaps) < 1e-6
    else:
        assert min(gaps) > 0.1


def test_values_tell_what_was_ordered_where_health_decides() -> None:
    """MNAR: a is seen by everyone, b and c where the health that a shows is high; the pattern itself is no help."""
    torch.manual_seed(0)
    shape = FusionShape(2, ("a", "b", "c"))
    fusion = EvidenceFusion(shape, latent=2, availability="values", reconstruction="none")
    u = torch.randn(2000, 1)
    observed = torch.rand(2000, 3) < torch.sigmoid(2 * u)
    observed[:, 0] = True
    modality, row = observed.T.nonzero(as_tuple=True)
    tokens = u[row] + 0.5 * torch.randn(len(row), 2)
    encoded = Encoded(tokens, row, modality, observed)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        compute(fusion, encoded)["availability"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    likely = logits_of(fusion, encoded)[:, 1].sigmoid().detach()
    seen = observed[:, 1]
    # P(δ_b | u) averages 0.68 where b was seen and 0.32 elsewhere; a and c show most of u, and b's own value is unused
    assert float(likely[seen].mean() - likely[~seen].mean()) > 0.2
    assert float(likely.mean()) == pytest.approx(float(seen.float().mean()), abs=0.05)
    # all that it could learn from δ itself would be a loss of nearly 0
    assert 0.2 < compute(fusion, encoded)["availability"].item() < 0.5


def test_switches_of_earlier_configs_still_hold() -> None:
    """True and False, in configs and checkpoints from before there was a choice."""
    for old, new in ((True, "posterior"), (False, "none")):
        one, other = build(availability=old), build(availability=new)
        other.load_state_dict(one.state_dict())
        terms, expected = compute(one, pack()), compute(other, pack())
        assert terms.keys() == expected.keys()
        assert all(terms[name].detach().equal(expected[name].detach()) for name in terms)
    assert build().state_dict().keys() == build(availability="values").state_dict().keys()


def test_more_evidence_means_less_uncertainty_and_none_is_the_prior() -> None:
    fusion = build(pattern=False)
    views = fusion(pack()).views
    assert float(views["uncertainty"][0]) == 1
    assert not views["posterior_mean"][0].any()
    for i in range(8):
        for j in range(8):
            if (OBSERVED[i] < OBSERVED[j]).any() and (OBSERVED[i] <= OBSERVED[j]).all():
                assert views["posterior_precision"][j].mean() > views["posterior_precision"][i].mean()


def test_it_is_the_posterior_of_gaussian_views() -> None:
    """With tokens that are the views themselves, the right weights give the posterior mean of the latent, exactly."""
    fusion = EvidenceFusion(FusionShape(2, ("a", "b")), latent=2, pattern=False)
    noise = (0.5, 2.0)
    with torch.no_grad():
        fusion.weight.zero_()
        for m, sd in enumerate(noise):
            # x = u + sd ε: natural parameters x / sd² and 1 / sd²
            fusion.weight[m, :, :2] = torch.eye(2) / sd**2
            fusion.bias[m, 2:] = float(np.log(np.expm1(1 / sd**2)))
    rng = np.random.default_rng(0)
    u = rng.normal(size=(4000, 2))
    views = torch.tensor(np.stack([u + sd * rng.normal(size=u.shape) for sd in noise]), dtype=torch.float32)
    observed = torch.tensor(rng.random((4000, 2)) < 0.6)
    modality, row = observed.T.nonzero(as_tuple=True)
    shown = fusion(Encoded(views[modality, row], row, modality, observed)).views
    for pattern in range(4):
        rows = (observed.numpy() @ [1, 2]) == pattern
        error = u[rows] - shown["posterior_mean"][rows].detach().numpy()
        # a variance of some 1,000 rows × 2 has a standard error of about 3 %
        assert error.var() == pytest.approx(float(shown["uncertainty"][rows].mean()), rel=0.12)


def test_what_dropout_hid_is_asked_for() -> None:
    torch.manual_seed(0)
    fusion = build(modality_dropout=0.5).train()
    encoded = pack(OBSERVED[7:].repeat(64, 1))
    hidden = compute(fusion, encoded)["reconstruction"]
    assert hidden.isfinite()
    encoded = replace(encoded, tokens=encoded.tokens.requires_grad_())
    fused = fusion(encoded)
    shown = fused.views["observed"][encoded.row, encoded.modality]
    assert not shown.all()
    fusion.auxiliary(encoded, fused, torch.zeros(64, 1), torch.ones(64, 1) > 0, global_count)[
        "reconstruction"
    ].backward()  # type: ignore[no-untyped-call]
    assert encoded.tokens.grad is not None
    assert not encoded.tokens.grad[~shown].any(), "what was hidden is a target, and no way in"
    assert encoded.tokens.grad[shown].any(1).all()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"reconstruction": "none"}, {"availability"}),
        ({"availability": "none"}, {"reconstruction"}),
        ({"availability": "values"}, {"reconstruction", "availability"}),
        ({"availability": "values", "reconstruction": "none", "modality_dropout": 0.5}, {"availability"}),
        ({"reconstruction": "none", "availability": "none", "pattern": False}, set()),
        ({"modality_dropout": 0.4, "dropout": 0.3}, {"reconstruction", "availability"}),
    ],
)
def test_every_switch_leaves_all_parameters_with_a_gradient(options: dict[str, Any], names: set[str]) -> None:
    fusion, encoded = build(**options).train(), pack()
    fused = fusion(encoded)
    terms = fusion.auxiliary(encoded, fused, torch.zeros(8, 1), torch.ones(8, 1) > 0, global_count)
    assert set(terms) == names
    torch.stack([fused.patient.sum(), *terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


def test_a_wrong_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="latent must be at least 1"):
        EvidenceFusion(SHAPE, latent=0)
    with pytest.raises(ValueError, match="reconstruction 'latent' is not one of input, none"):
        EvidenceFusion(SHAPE, reconstruction="latent")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="availability 'pattern' is not one of posterior, values, none"):
        EvidenceFusion(SHAPE, availability="pattern")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="modality 0 was declared"):
        compute(build(), replace(pack(), inputs=(None, None, None)))
