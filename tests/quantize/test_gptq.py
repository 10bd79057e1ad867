"""GPTQ against its oracle and against rounding to nearest; what all quantizers promise is in `tests/contracts/`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import NotFinite
from moesaic.quantize import GPTQ, RTN
from moesaic.quantize import gptq as module
from moesaic.quantize.gptq import feed_back
from moesaic.quantize.group_grid import GroupGrid, GroupSearch
from moesaic.records import PACKED_WIDTHS, QuantizedWeight
from tests.oracles.mc_gptq import mc_gptq
from tests.oracles.obq import damped, obq, output_error
from tests.quantize.made_up import gaussian, moment_of, rms_error, rows_of, same

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
widths = pytest.mark.parametrize("bits", PACKED_WIDTHS)


def loss(weight: Tensor, made: QuantizedWeight, moment: Tensor) -> float:
    """Squared error of the outputs."""
    return output_error(weight.double().numpy(), made.dequantize().double().numpy(), moment.double().numpy())


def oracle_view(weight: Tensor, made: QuantizedWeight, moment: Tensor, order: list[int]) -> np.ndarray:
    """What the oracle wants each column to be when it follows the codes that were made; in units of codes."""
    values = made.dequantize().double().numpy()
    hessian = damped(moment.double().numpy(), 0.01)
    wanted, _ = obq(weight.double().numpy(), hessian, order, lambda column, _: values[:, column])
    group = np.arange(made.columns) // made.group_size
    scale = (made.row_scale.double()[:, None] * made.scale_codes.double()).numpy()[:, group]
    return wanted / scale + made.zero().double().numpy()[:, group]


@widths
@pytest.mark.parametrize(("symmetric", "group"), [(False, 32), (True, 64), (False, 128)])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("columns", [96, 200, 300])
def test_every_code_is_the_one_nearest_to_what_the_oracle_wants(
    bits: int, symmetric: bool, group: int, act_order: bool, columns: int
) -> None:
    """Each column is rounded from what optimal brain quantization makes of it, over several blocks and groups."""
    weight, moment = gaussian(20, columns), moment_of(150, columns)
    made = GPTQ(group_size=group, symmetric=symmetric, act_order=act_order)(weight, bits, moment)
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    wanted = oracle_view(weight, made, moment, order.tolist())
    miss = np.abs(made.codes[:, :columns].numpy() - np.clip(wanted, 0, 2**bits - 1))
    assert miss.max() < (1 if bits == 1 else 0.5) + 2e-3


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@widths
def test_outputs_are_nearer_than_those_of_rtn(bits: int, symmetric: bool, group: int) -> None:
    """On correlated inputs the error of the outputs is well below that of rounding to nearest, at every width."""
    weight, moment = gaussian(64, 320), moment_of(500, 320)
    ours = loss(weight, GPTQ(group_size=group, symmetric=symmetric)(weight, bits, moment), moment)
    nearest = loss(weight, RTN(group_size=group, symmetric=symmetric)(weight, bits), moment)
    assert ours < 0.7 * nearest


@given(
    bits=st.sampled_from(PACKED_WIDTHS),
    columns=st.integers(32, 200),
    tokens=st.integers(1, 300),
    seed=st.integers(0, 10_000),
    group=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    heavy=st.booleans(),
    mix=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_outputs_are_never_farther_than_those_of_rtn(
    *, bits: int, columns: int, tokens: int, seed: int, group: int, symmetric: bool, heavy: bool, mix: float
) -> None:
    """From one token to many, from independent inputs to strongly correlated ones, heavy tails or not.

    Independent inputs leave nothing to gain, and the room that GPTQ keeps in a row's scale costs up to a thousandth.
    """
    weight = gaussian(48, columns, seed)
    weight = weight**3 if heavy else weight
    moment = mix * moment_of(tokens, columns, seed) + (1 - mix) * torch.eye(columns)
    ours = loss(weight, GPTQ(group_size=group, symmetric=symmetric)(weight, bits, moment), moment)
    assert ours <= 1.001 * loss(weight, RTN(group_size=group, symmetric=symmetric)(weight, bits), moment)


@lru_cache(maxsize=1)
def demo_matrices() -> list[tuple[Tensor, Tensor]]:
    """Weights and second moments of real experts: in each layer of the demo model the most and the least used."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    text = (DEMO / "heldout.txt").read_text(encoding="utf-8")[:20_000]
    tokens = torch.tensor(tokenizer(text)["input_ids"][: 16 * 256]).view(-1, 256)
    model.requires_grad_(False)
    found: list[tuple[Tensor, Tensor]] = []

    def keep(experts: torch.nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        hidden, chosen, _ = inputs
        hidden = hidden.reshape(-1, hidden.shape[-1]).double()
        counts = torch.bincount(chosen.flatten(), minlength=8)
        for expert in (int(counts.argmax()), int(counts.where(counts > 0, counts.max()).argmin())):
            routed = hidden[(chosen == expert).any(dim=-1)]
            gate_up, down = experts.gate_up_proj[expert].double(), experts.down_proj[expert].float()  # type: ignore[index]
            gate, up = (routed @ gate_up.T).chunk(2, dim=-1)
            inner = torch.nn.functional.silu(gate) * up
            found.append((gate_up.float(), routed.T @ routed))
            found.append((down, inner.T @ inner))

    hooks = [layer.mlp.experts.register_forward_pre_hook(keep) for layer in model.model.layers]
    with torch.inference_mode():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return found


@widths
@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_of_real_experts_are_nearer_than_those_of_rtn(bits: int, symmetric: bool) -> None:
    """Trained weights and the inputs that text gives them, busy experts and rare ones."""
    assert len(demo_matrices()) == 12
    for weight, moment in demo_matrices():
        ours = loss(weight, GPTQ(symmetric=symmetric)(weight, bits, moment), moment)
        assert ours < 0.8 * loss(weight, RTN(symmetric=symmetric)(weight, bits), moment)


@widths
def test_act_order_does_not_lose_to_rtn(bits: int) -> None:
    """Grids that are fixed beforehand serve too."""
    for weight, moment in demo_matrices()[:4]:
        ours = loss(weight, GPTQ(act_order=True)(weight, bits, moment), moment)
        assert ours < loss(weight, RTN()(weight, bits), moment)


@pytest.mark.parametrize("act_order", [False, True])
@widths
def test_the_number_of_threads_does_not_show(bits: int, act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of rows, done by one, two or four threads, give the same bytes, factorisation and all."""
    monkeypatch.setattr(module, "ROWS", 100)
    weight, moment = gaussian(350, 160), moment_of(300, 160)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(GPTQ(act_order=act_order)(weight, bits, moment))
    finally:
        torch.set_num_threads(before)
    assert all(same(each, found[0]) for each in found)


@widths
def test_matrices_with_the_same_inputs_share_a_factor(bits: int) -> None:
    """Gate and up, stacked or each with the factor that was made once, come out alike: rows do not know each other."""
    gate, up, moment = gaussian(40, 160), gaussian(30, 160, seed=1), moment_of(300, 160)
    quantizer = GPTQ()
    factor = quantizer.prepare(moment)
    both = quantizer.quantize(torch.cat([gate, up]), bits, factor)
    alone = quantizer.quantize(up, bits, factor)
    agree = sum(same(rows_of(both, 40 + row), rows_of(alone, row)) for row in range(30))
    assert agree >= 28  # a product of other shapes may round otherwise, and a code at the edge then falls the other way
    assert same(quantizer(up, bits, moment), alone)


POOR = {
    "no token": torch.zeros(130, 130),
    "one token": moment_of(1, 130),
    "constant inputs": torch.full((130, 130), 0.25),
    "dead inputs": moment_of(40, 130)
    * torch.cat([torch.ones(60), torch.zeros(70)]).outer(torch.cat([torch.ones(60), torch.zeros(70)])),
    "not quite positive": moment_of(3, 130) - 0.1 * torch.eye(130),
    "huge": moment_of(9, 130) * 1e30,
    "tiny": moment_of(9, 130) * 1e-40,
}


@pytest.mark.parametrize("poor", POOR)
@pytest.mark.parametrize("act_order", [False, True])
@widths
def test_experts_with_poor_moments_are_quantized(bits: int, act_order: bool, poor: str) -> None:
    """No token, one token, constant or dead inputs: finite, on the grid, and still near the weights."""
    weight = gaussian(10, 130)
    made = GPTQ(act_order=act_order)(weight, bits, POOR[poor])
    assert made.dequantize().isfinite().all()
    assert int(made.codes.max()) < 2**bits
    assert rms_error(weight, made) < [1.6, 1.2, 0.6, 0.4, 0.05][PACKED_WIDTHS.index(bits)]


def test_dead_columns_are_rounded_to_nearest() -> None:
    """A column that no input reached keeps its weights as well as its grid allows, and the others do not care."""
    weight, moment = gaussian(12, 64), moment_of(40, 64)
    moment[20], moment[:, 20] = 0, 0
    made = GPTQ()(weight, 4, moment)
    other = weight.clone()
    other[:, 20] *= -0.9
    again = GPTQ()(other, 4, moment)
    scale = made.row_scale.float() * made.scale_codes[:, 0].float()
    assert ((made.dequantize() - weight)[:, 20].abs() <= scale).all()
    assert loss(weight, made, moment) == pytest.approx(loss(other, again, moment), rel=0.2)


def test_zero_weights_stay_zero() -> None:
    """A row of zeros has no errors to make up for."""
    weight = gaussian(6, 96)
    weight[2] = 0
    for bits in PACKED_WIDTHS:
        assert not GPTQ()(weight, bits, moment_of(50, 96)).dequantize()[2].any()


@widths
def test_without_a_moment_it_rounds_to_nearest(bits: int) -> None:
    """No moment, and the moment of independent inputs of equal size, are the same thing; about as good as RTN."""
    weight = gaussian(24, 200)
    plain, independent = GPTQ()(weight, bits), GPTQ()(weight, bits, torch.eye(200))
    assert loss(weight, plain, torch.eye(200)) <= 1.005 * loss(weight, RTN()(weight, bits), torch.eye(200))
    assert loss(weight, plain, torch.eye(200)) == pytest.approx(loss(weight, independent, torch.eye(200)), rel=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(value: float) -> None:
    """Neither weights nor moments may hold NaN: it would spread over all later columns without a word."""
    weight, moment = gaussian(4, 64), moment_of(50, 64)
    broken = weight.clone()
    broken[1, 7] = value
    with pytest.raises(NotFinite, match="weight: 1 values are NaN or infinite"):
        GPTQ()(broken, 3, moment)
    moment[3, 2] = value
    with pytest.raises(NotFinite, match="second moment"):
        GPTQ()(weight, 3, moment)


def test_a_moment_of_another_size_is_refused() -> None:
    """The message says both sizes."""
    with pytest.raises(ValueError, match="of 32 inputs, and the weight has 64 columns"):
        GPTQ()(gaussian(4, 64), 3, torch.eye(32))


@pytest.mark.parametrize(
    "knob",
    [
        {"act_order": True},
        {"damping": 1.0},
        {"headroom": 3.0},
        {"candidates": 2},
        {"smallest": 0.9},
        {"refits": 0},
        {"compat": "mc"},
        {"symmetric": True},
        {"group_size": 32},
    ],
)
def test_every_knob_changes_the_result(knob: dict[str, float]) -> None:
    """No parameter is there for show."""
    weight, moment = gaussian(64, 256), moment_of(300, 256)
    made = GPTQ(**knob)(weight, 2, moment).dequantize()  # type: ignore[arg-type]
    assert not torch.equal(made, GPTQ()(weight, 2, moment).dequantize())


def test_unknown_variant_is_refused() -> None:
    """A misspelt variant is not silently the default."""
    with pytest.raises(ValueError, match="compat must be"):
        GPTQ(compat="mcc")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_released_variant_feeds_back_between_blocks_only(bits: int) -> None:
    """Up to 3 bits the first block is plain rounding; at 4 bits it is not, and the correct form is better."""
    weight, moment = gaussian(32, 256), moment_of(600, 256)
    released = GPTQ(group_size=128, compat="mc")(weight, bits, moment)
    alone = GPTQ(group_size=128, compat="mc")(weight[:, :128], bits)
    first = released.codes[:, :128]
    zero_scale = [(each.row_scale.float() * each.scale_codes[:, 0].float()) for each in (released, alone)]
    near = (zero_scale[0] - zero_scale[1]).abs() < 0.02 * zero_scale[1]
    agreement = float((first == alone.codes)[near].float().mean())
    assert (agreement > 0.97) == (bits <= 3)
    assert loss(weight, GPTQ(group_size=128)(weight, bits, moment), moment) < loss(weight, released, moment)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_released_variant_is_what_the_notes_on_it_say(bits: int) -> None:
    """Against a naive restatement in float64, code by code; two ranges that are equally good spoil few rows."""
    weight, moment = gaussian(12, 400, size=1.0), moment_of(700, 400)
    found = GPTQ(group_size=128, compat="mc")(weight, bits, moment)
    wanted = mc_gptq(weight.double().numpy(), moment.double().numpy(), bits, found.row_scale.double().numpy())
    error = (found.dequantize().double().numpy() - wanted) / np.abs(wanted).max()
    same = (np.abs(error) < 1e-3).mean(axis=1)
    assert (same == 1).sum() >= 10


def test_settled_weights_are_the_best_that_follow_the_columns_before() -> None:
    """The published routine searches a group's range on the least squares continuation after the columns before."""
    weight, moment = gaussian(8, 192, size=1.0), moment_of(400, 192)
    factor = GPTQ().prepare(moment)
    seen: list[Tensor] = []

    def search(weights: Tensor, group: int) -> GroupGrid:
        seen.append(weights.clone())
        return GroupSearch(symmetric=True, candidates=6, smallest=0.4, refits=1)(
            weights, torch.ones(len(weights)), torch.full((8,), 0.02).bfloat16(), 2
        )

    work = weight.T.contiguous()
    codes, grids = feed_back(work.clone(), factor.coupling, 64, search, settled=True)
    decoded = [grid.decode(codes[64 * n : 64 * n + 64].float()) for n, grid in enumerate(grids)]
    made = torch.cat(decoded).T.double().numpy()
    hessian = damped(moment.double().numpy(), 0.01)
    for group in (1, 2):
        fixed, free = slice(0, 64 * group), slice(64 * group, None)
        error = weight.double().numpy()[:, fixed] - made[:, fixed]
        best = weight.double().numpy()[:, free] + error @ hessian[fixed, free] @ np.linalg.inv(hessian[free, free])
        np.testing.assert_allclose(seen[group].T.numpy(), best[:, :64], atol=2e-3)


def test_the_released_variant_has_no_order_of_its_own() -> None:
    """What cannot be reproduced is refused."""
    with pytest.raises(ValueError, match="exclude each other"):
        GPTQ(compat="mc", act_order=True)


def test_the_released_variant_clears_dead_columns() -> None:
    """Columns of inputs that are always zero are set to zero first, as published."""
    weight, moment = gaussian(8, 128, size=1.0), moment_of(200, 128)
    moment[:, 5], moment[5] = 0, 0
    weight[:, 5] = 50.0
    kept, cleared = (GPTQ(compat=each)(weight, 4, moment).dequantize()[:, 5] for each in ("", "mc"))
    assert (kept > 20).all()
    assert (cleared.abs() < 1).all()


def test_blocks_and_strips_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lazy updates are a matter of speed: other blocks give the same error of the outputs."""
    weight, moment = gaussian(64, 300), moment_of(500, 300)
    whole = loss(weight, GPTQ(group_size=32)(weight, 3, moment), moment)
    monkeypatch.setattr(module, "_BLOCK", 32)
    monkeypatch.setattr(module, "_STRIP", 8)
    assert loss(weight, GPTQ(group_size=32)(weight, 3, moment), moment) == pytest.approx(whole, rel=1e-2)
