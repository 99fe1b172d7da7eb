from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmnar_lightning.encoders import default_encoder, encode
from mmnar_lightning.fusion import LeaveOneOutReconstruction, MMNARFusion
from mmnar_lightning.objectives import global_count, info_nce
from mmnar_lightning.records import Elements, Encoded, FusionShape, Inputs, Modality, PatientBatch

D = 8
SHAPE = FusionShape(D, ("a", "b", "c"), (4, 0, 2))
OBSERVED = (torch.arange(8)[:, None] >> torch.arange(3)) & 1 == 1


def pack(observed: Tensor = OBSERVED) -> Encoded:
    modality, row = observed.T.nonzero(as_tuple=True)
    inputs: list[Inputs | None] = []
    for m, width in enumerate(SHAPE.inputs):
        n = int(observed[:, m].sum())
        inputs.append(Inputs(torch.randn(n, width), torch.rand(n, width) < 0.7) if width else None)
    return Encoded(torch.randn(len(row), D), row, modality, observed, tuple(inputs))


def linear_fuse(slots: Tensor, observed: Tensor) -> Tensor:
    return (slots * observed[:, :, None]).sum(1) + observed.sum(1, keepdim=True)


def compute(part: LeaveOneOutReconstruction, encoded: Encoded, shown: Tensor | None = None) -> dict[str, Tensor]:
    shown = encoded.observed if shown is None else shown
    h = linear_fuse(encoded.dense(), shown)
    terms: dict[str, Tensor] = part(encoded, shown, h, h, linear_fuse, global_count)
    return terms


def _expected(part: LeaveOneOutReconstruction, encoded: Encoded, kind: str) -> float:
    """One row and one modality at a time, as the method says it."""
    slots = encoded.dense()
    errors: list[float] = []
    for i, observed in enumerate(encoded.observed):
        present = observed.nonzero().ravel().tolist()
        if len(present) < 2:
            continue
        for m in present:
            rest = observed.clone()
            rest[m] = False
            h = linear_fuse(slots[i : i + 1], rest[None])
            inputs = encoded.inputs[m]
            if kind == "input" and inputs is not None:
                place = int(encoded.observed[:i, m].sum())
                known = inputs.known[place]
                if known.any():
                    guess = part.input[str(m)](h)[0]
                    errors.append(((guess - inputs.values[place])[known] ** 2).mean().item())
            else:
                errors.append(((part.latent[str(m)](h)[0] - slots[i, m]) ** 2).mean().item())
    return sum(errors) / len(errors)


@pytest.mark.parametrize("kind", ["latent", "input"])
@pytest.mark.parametrize("hidden", [None, 3])
def test_reconstruction_is_its_formula(kind: Any, hidden: int | None) -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE, target=kind, hidden_per_row=hidden)
    encoded = pack()
    terms = compute(part, encoded)
    assert set(terms) == {"reconstruction", "contrast", "missingness"}
    assert terms["reconstruction"].item() == pytest.approx(_expected(part, encoded, kind), rel=1e-5)


@pytest.mark.parametrize("kind", ["latent", "input"])
def test_leaving_out_some_has_the_expectation_of_leaving_out_each(kind: Any) -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE, target=kind, contrast=False, hidden_per_row=1)
    encoded = pack(OBSERVED.repeat(400, 1))
    whole = LeaveOneOutReconstruction(SHAPE, target=kind, contrast=False)
    whole.load_state_dict(part.state_dict())
    some, each = (compute(p, encoded)["reconstruction"].item() for p in (part, whole))
    # 1,600 draws of errors with a spread of about their mean: a standard error of about 2.5 %
    assert some == pytest.approx(each, rel=0.1)


def test_rows_with_fewer_than_two_modalities_reconstruct_nothing() -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE)
    terms = compute(part, pack(OBSERVED[[0, 1, 2, 4]]))
    assert terms["reconstruction"].item() == terms["contrast"].item() == 0


def test_what_dropout_hid_is_asked_for_from_what_was_shown() -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE, contrast=False)
    encoded = pack(torch.ones(1, 3, dtype=torch.bool))
    shown = torch.tensor([[True, True, False]])
    slots = encoded.dense()
    errors = []
    for m, rest in ((0, [False, True, False]), (1, [True, False, False]), (2, [True, True, False])):
        guess = part.latent[str(m)](linear_fuse(slots, torch.tensor([rest])))
        errors.append(((guess - slots[:, m]) ** 2).mean().item())
    assert compute(part, encoded, shown)["reconstruction"].item() == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_leave_one_out_missingness_never_sees_what_it_predicts() -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE, target="none", contrast=False, missingness="leave_one_out")
    encoded = pack()
    assert part.availability is not None
    slots, losses = encoded.dense(), []
    for i in range(8):
        for m in range(3):
            rest = encoded.observed[i].clone()
            rest[m] = False  # the same representation whether m was there or not
            logit = part.availability(linear_fuse(slots[i : i + 1], rest[None]))[0, m]
            sign = 1 if encoded.observed[i, m] else -1
            losses.append(nn.functional.softplus(-sign * logit).item())
    assert compute(part, encoded)["missingness"].item() == pytest.approx(sum(losses) / 24, rel=1e-5)


def test_contrast_is_info_nce_of_the_projected_guesses_inside_each_modality() -> None:
    torch.manual_seed(0)
    part = LeaveOneOutReconstruction(SHAPE, temperature=0.3)
    assert part.project is not None
    encoded = pack()
    slots, guesses, truths, group = encoded.dense(), [], [], []
    for i, observed in enumerate(encoded.observed):
        present = observed.nonzero().ravel().tolist()
        for m in present if len(present) > 1 else []:
            rest = observed.clone()
            rest[m] = False
            guesses.append(part.project(part.latent[str(m)](linear_fuse(slots[i : i + 1], rest[None])))[0])
            truths.append(part.project(slots[i, m]))
            group.append(m)
    loss = info_nce(torch.stack(guesses), torch.stack(truths), torch.tensor(group), temperature=0.3)
    assert compute(part, encoded)["contrast"].item() == pytest.approx(loss.mean().item(), rel=1e-5)
    assert compute(LeaveOneOutReconstruction(SHAPE), encoded)["contrast"].item() != pytest.approx(loss.mean().item())


@pytest.mark.parametrize("modalities", [3, 12])
def test_missingness_of_a_flat_guess_is_the_log_of_the_number_of_patterns(modalities: int) -> None:
    shape = FusionShape(D, tuple(f"m{m}" for m in range(modalities)))
    part = LeaveOneOutReconstruction(shape, target="none", contrast=False)
    assert part.availability is not None
    nn.init.zeros_(part.availability.weight)  # type: ignore[arg-type]
    nn.init.zeros_(part.availability.bias)  # type: ignore[arg-type]
    observed = torch.rand(5, modalities) < 0.5
    z = torch.randn(5, D)
    modality, row = observed.T.nonzero(as_tuple=True)
    encoded = Encoded(torch.randn(len(row), D), row, modality, observed)
    term = part(encoded, observed, z, z, linear_fuse, global_count)["missingness"]
    assert term.item() == pytest.approx(modalities * torch.tensor(2.0).log().item(), rel=1e-5)
    nn.init.normal_(part.availability.bias)  # type: ignore[arg-type]
    assert part(encoded, observed, z, z, linear_fuse, global_count)["missingness"].item() != pytest.approx(term.item())


def _encoders_and_batch() -> tuple[nn.ModuleDict, PatientBatch]:
    torch.manual_seed(0)
    built = nn.ModuleDict(
        {n: default_encoder(Modality(n, "vector", ("x", "y"), (0.0, 0.0), (1.0, 1.0)), D) for n in ("a", "b", "c")}
    )
    elements = {}
    for m, name in enumerate("abc"):
        row = OBSERVED[:, m].nonzero().ravel()
        elements[name] = Elements(row, torch.zeros(len(row)), torch.randn(len(row), 2))
    ones = torch.ones(8, 1)
    return built, PatientBatch(elements, OBSERVED, ones, ones > 0, torch.arange(8))


@pytest.mark.parametrize("stop", [True, False])
def test_stop_gradient_moves_no_encoder_through_its_target(stop: bool) -> None:
    encoders, batch = _encoders_and_batch()
    shape = FusionShape(D, ("a", "b", "c"), (2, 2, 2))
    part = LeaveOneOutReconstruction(shape, stop_gradient=stop, contrast=False, missingness="none")

    def deaf(slots: Tensor, observed: Tensor) -> Tensor:
        # a fusion that passes no gradient: what then moves an encoder came through the target
        return linear_fuse(slots, observed).detach()

    encoded = encode(encoders, batch)
    h = deaf(encoded.dense(), encoded.observed)
    part(encoded, encoded.observed, h, h, deaf, global_count)["reconstruction"].backward()
    moved = sum(float(p.grad.abs().sum()) for p in encoders.parameters() if p.grad is not None)
    assert moved == 0 if stop else moved > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.latent.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruction": "input", "missingness": "leave_one_out"},
        {"reconstruction": "none", "contrast": False, "missingness": "none"},
        {"reconstruction": "none", "missingness": "none"},
        {"reconstruction": "input", "contrast": False, "hidden_per_row": 1, "modality_dropout": 0.5},
        {"stop_gradient": False, "hidden_per_row": 2},
    ],
)
def test_no_parameter_is_left_without_gradient_by_any_option(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fusion = MMNARFusion(SHAPE, heads=2, **options)
    encoded = pack()
    fused = fusion(encoded)
    terms = fusion.auxiliary(encoded, fused, torch.zeros(8, 1), torch.ones(8, 1) > 0, global_count)
    expected = {"reconstruction", "contrast", "missingness"}
    for name, default in (("reconstruction", "latent"), ("missingness", "pattern")):
        if options.get(name, default) == "none":
            expected.remove(name)
    assert set(terms) == (expected if options.get("contrast", True) else expected - {"contrast"})
    torch.stack([fused.patient.sum(), *terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


def test_inputs_that_were_declared_must_come() -> None:
    part = LeaveOneOutReconstruction(SHAPE, target="input")
    encoded = replace(pack(), inputs=(None, None, None))
    with pytest.raises(ValueError, match="modality 0 was declared"):
        compute(part, encoded)
