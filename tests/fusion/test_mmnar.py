from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, expit, softmax
from torch import Tensor

from mmnar_lightning.fusion import MMNARFusion
from mmnar_lightning.records import Encoded, FusionShape

D, M = 8, 3
SHAPE = FusionShape(D, ("a", "b", "c"), (0, 0, 0))


def pack(slots: Tensor, observed: Tensor) -> Encoded:
    modality, row = observed.T.nonzero(as_tuple=True)
    return Encoded(slots[row, modality], row, modality, observed)


def build(**options: Any) -> MMNARFusion:
    torch.manual_seed(0)
    fusion = MMNARFusion(SHAPE, **{"heads": 2, **options}).eval()
    for parameter in fusion.parameters():  # zeros and ones would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return fusion


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias)


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def _plain(fusion: MMNARFusion, e: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Section 2 of the method, one row, in NumPy, over the observed modalities only: no mask anywhere."""
    p = {name: value.double().numpy() for name, value in fusion.state_dict().items()}
    seen = [m for m in range(M) if delta[m]]
    if not seen:
        return np.asarray(p["empty"])
    z = p["condition.2.weight"] @ _gelu(p["condition.0.weight"] @ delta + p["condition.0.bias"]) + p["condition.2.bias"]
    gate = np.ones((M, D))
    if "gate.weight" in p:
        gate = expit(p["gate.weight"] @ z + p["gate.bias"]).reshape(M, D)
    x = np.stack([gate[m] * e[m] + p["modality"][m] for m in seen])
    for i in range(len(fusion.blocks)):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        qkv = _norm(x, w["norm.weight"], w["norm.bias"]) @ w["qkv.weight"].T + w["qkv.bias"]
        q, k, v = (part.reshape(len(seen), 2, D // 2).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=1))
        mixed = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(D // 2), axis=-1) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(len(seen), D) @ w["out.0.weight"].T + w["out.0.bias"]
        y = _norm(x, w["mlp.0.weight"], w["mlp.0.bias"])
        x = x + _gelu(y @ w["mlp.1.weight"].T + w["mlp.1.bias"]) @ w["mlp.4.weight"].T + w["mlp.4.bias"]
    x = _norm(x, p["norm.weight"], p["norm.bias"])
    share = softmax(x @ p["query"] / np.sqrt(D)) if "query" in p else np.full(len(seen), 1 / len(seen))
    h = share @ x
    if "pattern.weight" in p:
        h = h + p["pattern.weight"][int(delta @ 2 ** np.arange(M))]
    elif "pattern.0.weight" in p:
        hidden = _gelu(p["pattern.0.weight"] @ delta + p["pattern.0.bias"])
        h = h + p["pattern.2.weight"] @ hidden + p["pattern.2.bias"]
    return np.asarray(h)


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": 0},
        {"blocks": 1},
        {"blocks": 2},
        {"gates": False},
        {"pattern_term": "mlp"},
        {"pattern_term": "none"},
        {"pooling": "attention"},
    ],
)
def test_mmnar_is_its_equations(options: dict[str, Any]) -> None:
    fusion = build(**options)
    observed = (torch.arange(8)[:, None] >> torch.arange(M)) & 1 == 1
    slots = torch.randn(8, M, D)
    with torch.no_grad():
        ours = fusion(pack(slots, observed)).patient.double().numpy()
    for i in range(8):
        expected = _plain(fusion, slots[i].double().numpy(), observed[i].double().numpy())
        np.testing.assert_allclose(ours[i], expected, rtol=1e-4, atol=1e-5)


def test_views_show_gates_and_attention() -> None:
    fusion = build(keep_attention=True)
    observed = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    views = fusion(pack(torch.randn(3, M, D), observed)).views
    assert ((views["gate"] > 0) == observed).all()
    torch.testing.assert_close(views["attention"].sum(2), observed.float())
    assert (views["attention"][0, :, 2] == 0).all()
    assert "attention" not in build()(pack(torch.randn(3, M, D), observed)).views


def test_a_row_with_nothing_is_the_learned_vector() -> None:
    fusion = build()
    fused = fusion(pack(torch.randn(2, M, D), torch.zeros(2, M, dtype=torch.bool)))
    torch.testing.assert_close(fused.patient, fusion.empty.detach().expand(2, D), check_stride=False)


def test_slots_that_are_not_observed_are_not_read() -> None:
    fusion = build()
    observed = torch.tensor([[True, False, True]])
    slots = torch.randn(1, M, D)
    poisoned = slots.clone()
    poisoned[0, 1] = torch.nan
    torch.testing.assert_close(fusion.fuse(poisoned, observed), fusion.fuse(slots, observed))


def test_pattern_term_by_number_of_modalities() -> None:
    def many(n: int, **options: Any) -> MMNARFusion:
        return MMNARFusion(FusionShape(D, tuple(f"m{m}" for m in range(n))), heads=2, **options)

    assert isinstance(many(8).pattern, torch.nn.Embedding)
    assert isinstance(many(9).pattern, torch.nn.Sequential)
    assert isinstance(many(9, pattern_term="table").pattern, torch.nn.Embedding)
    assert isinstance(many(2, pattern_term="mlp").pattern, torch.nn.Sequential)
    assert many(2, pattern_term="none").pattern is None
    with pytest.raises(ValueError, match="2\\^20 rows"):
        many(20, pattern_term="table")


def test_options_that_switch_parts_off_run() -> None:
    observed = torch.tensor([[True, True, False], [False, False, False]])
    encoded = pack(torch.randn(2, M, D), observed)
    fused = build(gates=False, pooling="attention", pattern_term="none", blocks=0)(encoded)
    assert fused.patient.isfinite().all()
    assert "gate" not in fused.views


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "not divisible by 3"),
        ({"pooling": "max"}, "mean, attention"),
        ({"pattern_term": "tree"}, "auto, table, mlp, none"),
        ({"reconstruction": "pixels"}, "latent, input, none"),
        ({"missingness": "always"}, "pattern, leave_one_out, none"),
        ({"hidden_per_row": 0}, "hidden_per_row"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_a_wrong_choice_lists_the_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMNARFusion(SHAPE, **{"heads": 2, **options})
