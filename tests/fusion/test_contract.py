"""What every fusion must do, whoever wrote it: the registry is walked, so a new one is covered by existing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmnar_lightning.fusion import Fused, Fusion, fusions
from mmnar_lightning.objectives import binary_cross_entropy, global_count
from mmnar_lightning.records import Encoded, FusionShape, Inputs, pattern_id

D = 16
WIDTHS = (3, 0, 5)  # of the inputs, in turn: the second modality has none, as raw text
# what is tested elsewhere with a fusion of its own has no place here; a fusion of somebody else's has
OURS = {name: cls for name, cls in fusions().items() if not cls.__module__.startswith("tests")}


def shape(modalities: int) -> FusionShape:
    return FusionShape(
        D,
        tuple(f"m{m}" for m in range(modalities)),
        tuple(WIDTHS[m % 3] for m in range(modalities)),
        tasks=2,
    )


def build(cls: type[Fusion], modalities: int) -> Fusion:
    torch.manual_seed(0)
    return cls(shape(modalities))


def pack(observed: Tensor, seed: int = 0) -> Encoded:
    """Values depend on the row alone, so that a subset of rows has the same values."""
    generator = torch.Generator().manual_seed(seed)
    B, M = observed.shape
    slots = torch.randn(B, M, D, generator=generator)
    modality, row = observed.T.nonzero(as_tuple=True)
    inputs: list[Inputs | None] = []
    for m in range(M):
        values = torch.randn(B, WIDTHS[m % 3], generator=generator)
        known = torch.rand(values.shape, generator=generator) < 0.8
        here = observed[:, m]
        inputs.append(Inputs(values[here], known[here]) if WIDTHS[m % 3] else None)
    return Encoded(slots[row, modality], row, modality, observed, tuple(inputs))


def rows_of(encoded: Encoded, rows: Tensor) -> Encoded:
    """The same rows in another order, or fewer of them."""
    observed = encoded.observed[rows]
    slots = encoded.dense()[rows]
    modality, row = observed.T.nonzero(as_tuple=True)
    return Encoded(slots[row, modality], row, modality, observed)


def patterns(modalities: int) -> Tensor:
    """All 2^M patterns up to M = 6; above, 64 of them with nothing, everything and each alone among them."""
    if modalities <= 6:
        ids = torch.arange(2**modalities)
    else:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(2**modalities, (64,), generator=generator)
        single = 2 ** torch.arange(modalities)
        ids = torch.cat([torch.tensor([0, 2**modalities - 1]), single, drawn])[:64]
    observed = (ids[:, None] >> torch.arange(modalities)) & 1 == 1
    assert pattern_id(observed).equal(ids)
    return observed


def outputs(fused: Fused) -> list[Tensor]:
    return [fused.patient, *([fused.logits] if fused.logits is not None else [])]


def terms(fusion: Fusion, encoded: Encoded, fused: Fused) -> dict[str, Tensor]:
    targets = torch.zeros(len(encoded.observed), 2)
    return fusion.auxiliary(encoded, fused, targets, torch.ones_like(targets, dtype=torch.bool), global_count)


@pytest.fixture(params=sorted(OURS), name="cls")
def _cls(request: pytest.FixtureRequest) -> type[Fusion]:
    return OURS[request.param]


def test_there_are_fusions_and_each_says_where_it_comes_from() -> None:
    assert {"MMNARFusion", "ConcatFusion", "DeltaOnlyFusion"} <= set(OURS)
    for cls in OURS.values():
        assert "Source:" in (cls.__doc__ or ""), cls


@pytest.mark.parametrize("modalities", [1, 3, 6, 12])
def test_every_pattern_runs_and_is_finite(cls: type[Fusion], modalities: int) -> None:
    fusion = build(cls, modalities).eval()
    encoded = pack(patterns(modalities))
    fused = fusion(encoded)
    assert fused.patient.shape == (len(encoded.observed), D)
    assert fused.logits is None or fused.logits.shape == (len(encoded.observed), 2)
    assert all(out.isfinite().all() for out in outputs(fused))
    assert all(v.shape[0] == len(encoded.observed) for v in fused.views.values())
    assert fused.views["observed"].equal(encoded.observed)
    for name, term in terms(fusion, encoded, fused).items():
        assert term.shape == (), name
        assert term.isfinite(), name


def test_a_row_depends_on_its_own_observed_values_only(cls: type[Fusion]) -> None:
    if cls.literal or not cls.batch_independent:
        pytest.skip("declared to depend on batch mates")
    fusion = build(cls, 4).eval()
    encoded = pack(patterns(4))
    whole = outputs(fusion(encoded))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for rows in (order, order[:5], torch.tensor([0]), torch.tensor([15]), torch.tensor([6])):
        for part, full in zip(outputs(fusion(rows_of(encoded, rows))), whole, strict=True):
            torch.testing.assert_close(part, full[rows], rtol=1e-4, atol=1e-5)
    # values of other rows, however wild, change nothing
    wild = replace(encoded, tokens=torch.where(encoded.row[:, None] == 9, encoded.tokens, 1e4))
    for part, full in zip(outputs(fusion(wild)), whole, strict=True):
        torch.testing.assert_close(part[9], full[9], rtol=1e-4, atol=1e-5)


def test_evaluation_is_deterministic(cls: type[Fusion]) -> None:
    fusion = build(cls, 3).eval()
    encoded = pack(patterns(3))
    for one, two in zip(outputs(fusion(encoded)), outputs(fusion(encoded)), strict=True):
        assert one.equal(two)


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_one_and_of_none(cls: type[Fusion], rows: int) -> None:
    fusion = build(cls, 3)
    for pattern in range(8):
        encoded = pack(patterns(3)[pattern : pattern + 1][:rows])
        fused = fusion(encoded)
        assert fused.patient.shape == (rows, D)
        loss = torch.stack([fused.patient.sum(), *terms(fusion, encoded, fused).values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("absent", [None, 0, 1, 2, "all"])
def test_every_parameter_gets_a_finite_gradient_whatever_is_absent(cls: type[Fusion], absent: int | str | None) -> None:
    fusion = build(cls, 3)
    observed = patterns(3).clone()
    if isinstance(absent, int):
        observed[:, absent] = False
    elif absent == "all":
        observed[:] = False
    encoded = pack(observed)
    encoded = replace(encoded, tokens=encoded.tokens.requires_grad_())
    fused = fusion(encoded)
    loss = sum(out.sum() for out in outputs(fused)) + sum(terms(fusion, encoded, fused).values())
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in fusion.named_parameters() if p.grad is None]
    assert not without, f"DDP would wait for {without}"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
    # the encoders stand behind the tokens: they too must be reached in every batch
    assert encoded.tokens.grad is not None
    assert encoded.tokens.grad.isfinite().all()


def test_terms_have_the_same_names_in_every_batch(cls: type[Fusion]) -> None:
    fusion = build(cls, 3)
    full, empty = pack(patterns(3)), pack(torch.zeros(2, 3, dtype=torch.bool))
    assert terms(fusion, full, fusion(full)).keys() == terms(fusion, empty, fusion(empty)).keys()


def test_64_distinct_rows_can_be_overfitted(cls: type[Fusion]) -> None:
    # all 64 patterns of six modalities, each once: distinct also for one that reads nothing but the pattern
    fusion = build(cls, 6)
    head = nn.Linear(D, 2)
    for module in fusion.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    encoded = pack(patterns(6))
    targets = (torch.rand(64, 2, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    optimiser = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=1e-2)
    loss = torch.tensor(1.0)
    for _ in range(400):
        fused = fusion(encoded)
        logits = fused.logits if fused.logits is not None else head(fused.patient)
        loss = binary_cross_entropy(logits, targets).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if loss < 0.05:
            break
    assert loss < 0.05


@pytest.mark.parametrize("mixed", [True, False])
def test_bf16_is_finite(cls: type[Fusion], mixed: bool) -> None:
    fusion, encoded = build(cls, 4), pack(patterns(4))
    if not mixed:
        fusion, encoded = fusion.bfloat16(), replace(encoded, tokens=encoded.tokens.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        fused = fusion(encoded)
        loss = torch.stack([fused.patient.float().sum(), *terms(fusion, encoded, fused).values()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(out.isfinite().all() for out in outputs(fused))
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_nothing_given_is_changed(cls: type[Fusion]) -> None:
    fusion, encoded = build(cls, 3), pack(patterns(3))
    tokens, observed = encoded.tokens.clone(), encoded.observed.clone()
    terms(fusion, encoded, fusion(encoded))
    assert encoded.tokens.equal(tokens)
    assert encoded.observed.equal(observed)


def test_modality_dropout_hides_in_training_only_and_keeps_one(cls: type[Fusion]) -> None:
    torch.manual_seed(0)
    fusion = cls(shape(3), modality_dropout=0.9)
    observed = patterns(3).repeat(50, 1)
    encoded = pack(observed)
    shown = fusion.train()(encoded).views["observed"]
    assert (shown <= observed).all()
    assert shown.any(1).equal(observed.any(1))
    assert shown.sum() < 0.6 * observed.sum()
    assert fusion.eval()(encoded).views["observed"].equal(observed)


def test_the_state_can_be_saved_and_loaded(cls: type[Fusion]) -> None:
    fusion, encoded = build(cls, 3).eval(), pack(patterns(3))
    torch.manual_seed(99)
    again = cls(shape(3)).eval()
    again.load_state_dict(fusion.state_dict())
    for one, two in zip(outputs(fusion(encoded)), outputs(again(encoded)), strict=True):
        assert one.equal(two)
