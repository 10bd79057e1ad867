"""The decoder experiment measures what it says: truth, what experts serve, correlations, and plans of equal size."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.decoder_evidence.ablation import compare
from experiments.decoder_evidence.correlate import Correlations
from experiments.decoder_evidence.figures import draw
from experiments.decoder_evidence.plans import BUDGETS, one_budget, orders, plan_key, plans
from experiments.decoder_evidence.record import make_record, write_record
from experiments.decoder_evidence.served import observe, unigram_of
from experiments.decoder_evidence.setting import Setting, Sizes
from experiments.decoder_evidence.table import summary
from experiments.decoder_evidence.tail import Tail
from experiments.decoder_evidence.training import early_order, stand_in
from experiments.held_out import Blocks
from experiments.journal import Journal
from experiments.mixture import Mixture, log_probabilities, token_kl
from safetensors.torch import save_file
from scipy.stats import spearmanr
from tests.talking import talking_copy, write_text

from moesaic.checkpoint.reader import Checkpoint
from moesaic.checkpoint.weights import CheckpointWeights
from moesaic.quantize import RTN
from moesaic.runtime.hf import open_model

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "experiments" / "records"
MEASURES = ("norm change", "final norm", "MaxVar", "selection count", "Fisher cost", "truth")
LAYERS = ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")


def some_blocks(length: int = 24) -> Blocks:
    """Six random blocks of two made-up domains."""
    ids = torch.randint(2, 128, (6, length), generator=torch.Generator().manual_seed(1))
    return Blocks(ids, ("one", "two") * 3)


def some_values(experts: int = 8) -> dict[str, dict[str, list[float]]]:
    """Positive random measures of two layers."""
    rng = np.random.default_rng(3)
    return {name: {layer: (1 + rng.random(experts)).tolist() for layer in LAYERS} for name in MEASURES}


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "olmoe"])
def test_the_truth_from_the_middle_is_that_of_the_whole_model(
    model_type: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    """Running from the changed layer on gives the KL that running all layers gives, in every layer."""
    blocks = some_blocks()
    mixture = Mixture(tiny_checkpoint(model_type), blocks.ids, RTN(group_size=32, symmetric=True), batch=4)
    tail = Tail(mixture)
    for layer in mixture.layers:
        weights = mixture.model.get_parameter(layer.fused_parameters[1]).data[3]
        before = weights.clone()
        weights.mul_(100)  # 2 bits hardly change what a random model says
        logs = log_probabilities(mixture.model, blocks.ids)
        whole = token_kl(mixture.log_probabilities, logs).mean(dim=1)
        torch.testing.assert_close(tail.kl(layer.name), whole, rtol=1e-3, atol=1e-6)
        assert whole.max() > 1e-3
        weights.copy_(before)
    assert tail.kl(mixture.layers[-1].name).abs().max() < 1e-6


def test_what_experts_serve_is_what_the_router_says(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Counts, domains, rarity and strength of an expert, worked out a second time token by token."""
    folder, blocks = tiny_checkpoint("mixtral"), some_blocks()
    unigram = unigram_of(blocks, 128, None)
    assert float(unigram.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    layer = Checkpoint.open(folder).layers[1]
    seen: list[tuple[torch.Tensor, ...]] = []
    model = open_model(folder, dtype=torch.float32)
    module = model.get_submodule(layer.name)
    module.register_forward_hook(lambda _m, args, _o: seen.append(args))
    with torch.inference_mode():
        model(input_ids=blocks.ids, use_cache=False)
    ((hidden, index, weights),) = seen
    served = observe(folder, blocks, unigram, batch=4)[layer.name]
    assert int(served.count.sum()) == blocks.tokens * 2
    expert = int(served.count.argmax())
    token, place = torch.where(index == expert)
    first, down = module.gate_up_proj.data[expert], module.down_proj.data[expert]
    gate, up = (hidden[token] @ first.T).chunk(2, dim=1)
    norm = torch.linalg.vector_norm((torch.nn.functional.silu(gate) * up) @ down.T, dim=1)
    assert int(served.count[expert]) == len(token)
    assert float(served.mass[expert]) == pytest.approx(float(weights[token, place].sum()), rel=1e-4)
    assert float(served.output[expert]) == pytest.approx(float(norm.sum()), rel=1e-4)
    assert float(served.weighted[expert]) == pytest.approx(float((norm * weights[token, place]).sum()), rel=1e-4)
    assert float(served.surprise[expert]) == pytest.approx(
        -float(unigram[blocks.ids.reshape(-1)[token]].sum()), rel=1e-4
    )
    second = int((torch.div(token, 24, rounding_mode="floor") % 2 == 1).sum())
    assert served.domains[expert].tolist() == [len(token) - second, second]


def test_values_of_an_expert_that_serves_nothing_are_left_out(tiny_checkpoint: Callable[[str], Path]) -> None:
    """A dead expert has no rarity; it is counted and left out, and does not become a number."""
    served = observe(tiny_checkpoint("mixtral"), some_blocks(), torch.zeros(128))[LAYERS[0]]
    for part in (served.count, served.surprise, served.domains):
        part[2] = 0
    values = {name: {LAYERS[0]: row} for name, row in served.values(144).items()}
    assert math.isnan(values["token rarity"][LAYERS[0]][2])
    assert Correlations(values, draws=10).left_out == 1


def test_correlations_are_spearmans_and_overall_their_mean() -> None:
    """The same numbers as scipy's, ties included; the intervals hold them."""
    values = some_values()
    values["MaxVar"][LAYERS[0]][0] = values["MaxVar"][LAYERS[0]][1]
    found = Correlations(values, draws=200)
    each = [float(spearmanr(values["MaxVar"][layer], values["truth"][layer]).statistic) for layer in LAYERS]
    assert [found.within(layer, "MaxVar", "truth")["mean"] for layer in LAYERS] == pytest.approx(each)
    overall = found.overall("MaxVar", "truth")
    assert overall["mean"] == pytest.approx(np.mean(each))
    assert overall["low"] < overall["mean"] < overall["high"]
    assert found.overall("truth", "truth")["low"] == pytest.approx(1.0)


def test_the_early_order_grows_into_the_final_one() -> None:
    """A change that grows evenly has its final order from the first snapshot on; a constant offset changes nothing."""
    values = some_values()
    first = {layer: [5.0] * 8 for layer in LAYERS}
    later = {
        step: {layer: [5.0 + share * v for v in values["norm change"][layer]] for layer in LAYERS}
        for step, share in ((1, 0.1), (8, 1.0))
    }
    rows = early_order({0: first, **later}, values, draws=50)
    assert [row["step"] for row in rows] == [1, 8]
    assert [row["with final change"][0] for row in rows] == [1.0, 1.0]


def test_the_final_norm_stands_in_where_the_initial_norms_are_alike() -> None:
    """With equal initial norms the order is the same; with widely spread ones it is that of the initial norms."""
    values = some_values()
    for spread, low, high in ((1e-6, 0.999, 1.001), (1e3, -0.9, 0.9)):
        values["initial norm"] = {layer: [spread * ((5 * e) % 8) for e in range(8)] for layer in LAYERS}
        values["final norm"] = {
            layer: [a + b for a, b in zip(values["initial norm"][layer], values["norm change"][layer], strict=True)]
            for layer in LAYERS
        }
        assert all(low < row["spearman"] < high for row in stand_in(values).values())


def test_all_plans_of_a_budget_take_the_same_bits(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Every case is compared at equal stored bytes, with one budget over all layers too."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    shapes = [layer.shape for layer in checkpoint.layers]
    values = some_values()
    for budget in BUDGETS:
        made = dict(plans(budget, values, shapes, CheckpointWeights(checkpoint), random=3))
        assert {plan.reached_bits(shapes) for plan in made.values()} == {budget.bits}
        assert len({plan_key(plan) for plan in made.values()}) > 5
        assert ("uniform" in made) == (budget.bits == 2)
        low = made["norm change only"].layers[LAYERS[0]].gate_up
        high = made["norm change, reversed"].layers[LAYERS[0]].gate_up
        order = values["norm change"][LAYERS[0]]
        assert low[int(np.argmin(order))] == high[int(np.argmax(order))] == 3


def test_one_budget_moves_bits_between_layers(tiny_checkpoint: Callable[[str], Path]) -> None:
    """A layer whose scores are all larger gets more bits with one budget, and not where they are standardised."""
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral"))
    shapes = [layer.shape for layer in checkpoint.layers]
    values = some_values()
    values["MaxVar"][LAYERS[1]] = [value + 10 for value in values["MaxVar"][LAYERS[1]]]
    found = {order.name: one_budget(BUDGETS[0], shapes, order) for order in orders(values) if order.shared}
    assert found["MaxVar only, one budget"].layers[LAYERS[1]].gate_up == (3,) * 8
    plan = found["MaxVar only, one budget, standardised"].layers
    assert 2 < np.mean(plan[LAYERS[1]].gate_up) < 3


def test_a_random_plan_is_no_better_than_itself() -> None:
    """The paired difference of a case that equals the mean of the random plans is nothing."""
    cases = [
        {"name": name, "key": name, "bits": 2.0, "kl": kl, "loss": kl}
        for name, kl in (
            ("random, seed 0", [1.0, 2.0, 3.0]),
            ("random, seed 1", [3.0, 2.0, 1.0]),
            ("mean", [2.0, 2.0, 2.0]),
            ("better", [1.0, 1.0, 1.0]),
        )
    ]
    found = compare(cases)
    assert found["cases"][0]["against random"] == [0, 0, 0]
    assert found["cases"][1]["against random"] == [-1, -1, -1]
    assert found["cases"][1]["better random"] == 0


def test_a_torn_line_is_measured_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    """What a kill left half-written is dropped; results of another setting are never taken over."""
    path = tmp_path / "a.jsonl"
    journal = Journal(path, {"size": 1})
    journal.add("one", 1.5)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "two", "val')
    again = Journal(path, {"size": 1})
    assert again.found == {"one": 1.5}
    again.add("two", 2)
    assert Journal(path, {"size": 1}).found == {"one": 1.5, "two": 2}
    with pytest.raises(ValueError, match="other settings"):
        Journal(path, {"size": 2})


def test_what_belongs_to_a_model_is_found(tmp_path: Path) -> None:
    """A model's own held-out text comes first; a corpus gives its whole domains; none at all is an error."""
    for name in ("b.train", "b.valid", "b.test", "a.train", "a.valid", "a.test", "other.test"):
        (tmp_path / f"{name}.txt").write_text("text", encoding="utf-8")
    demo = ROOT / "models" / "demo"
    own = Setting.find(demo, tmp_path, corpus=tmp_path, sizes=Sizes())
    assert [path.name for path in own.held_out] == ["heldout.txt"]
    assert [path.name for path in own.calibration] == ["a.valid.txt", "b.valid.txt"]
    assert own.initial is not None
    assert own.run is None
    (tmp_path / "model").mkdir()
    other = Setting.find(tmp_path / "model", tmp_path, corpus=tmp_path, sizes=Sizes())
    assert [path.name for path in other.held_out] == ["a.test.txt", "b.test.txt"]
    with pytest.raises(ValueError, match="--corpus"):
        Setting.find(tmp_path / "model", tmp_path, sizes=Sizes())


def test_a_run_from_model_to_figures(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """All parts on a tiny model laid out as a training run leaves it; the second time nothing is measured."""
    model = talking_copy(tiny_checkpoint("qwen2_moe"), tmp_path / "fine_grained_20m" / "export")
    final = {layer.router: Checkpoint.open(model).router(layer) for layer in Checkpoint.open(model).layers}
    for step, share in ((0, 0.0), (4, 0.9), (8, 1.0)):
        noise = torch.Generator().manual_seed(0)
        routers = {name: (0.5 + share) * w + 0.01 * torch.randn(w.shape, generator=noise) for name, w in final.items()}
        path = model.parent / "routers" / f"step_{step:06d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(routers, path)
    shutil.copy(model.parent / "routers" / "step_000000.safetensors", model / "initial_routers.safetensors")
    for domain in ("one", "two"):
        for part in ("train", "valid", "test"):
            write_text(tmp_path / f"{domain}.{part}.txt", 2000)
    sizes = Sizes(32, truth_tokens=256, plan_tokens=256, calibration_tokens=512, random_plans=2, draws=20)
    setting = Setting.find(model, tmp_path / "work", corpus=tmp_path, sizes=sizes)
    records = tmp_path / "records"
    for record in make_record(setting):
        write_record(record, records / "evidence_fine_grained_20m.json")
    record = json.loads((records / "evidence_fine_grained_20m.json").read_text(encoding="utf-8"))
    assert list(record["ablations"]) == [budget.name for budget in BUDGETS]
    assert [row["step"] for row in record["early"]] == [4, 8]
    assert "largest domain share" in record["correlations"]["names"]
    assert "| step |" in summary(record)
    assert len(draw(records, tmp_path / "figures")) == 5
    before = {path: path.stat().st_size for path in setting.work.glob("*.jsonl")}
    assert json.loads(json.dumps(list(make_record(setting))[-1])) == record
    assert {path: path.stat().st_size for path in setting.work.glob("*.jsonl")} == before


def test_the_quick_form_on_the_bundled_model_shows_what_is_safe(tmp_path: Path) -> None:
    """The command, on a trained model: measured costs know which experts matter, and small norm changes do not."""
    command = [sys.executable, "-m", "experiments.decoder_evidence", "models/demo", "--quick"]
    command += ["--work", str(tmp_path / "work"), "--save", str(tmp_path / "record.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    names = record["correlations"]["names"]
    with_truth = dict(zip(names, record["correlations"]["overall"][names.index("truth")], strict=True))
    for measure in ("Fisher cost", "quantization error"):
        assert with_truth[measure][1] > 0, measure  # the lower end of the interval
    cases = {case["name"]: case["against random"] for case in record["ablations"]["1/2/3 at 2.0"]["cases"]}
    assert cases["Fisher cost, one budget"][2] < 0  # less KL than random plans
    assert cases["selection count, reversed"][1] > 0
    assert cases["norm change only"][2] > 0  # not better than random plans, as far as can be told


def test_figures_and_tables_come_from_the_records(tmp_path: Path) -> None:
    """Every record in the repository can be drawn and printed again."""
    made = draw(RECORDS, tmp_path)
    assert all(path.stat().st_size < 150_000 for path in made)
    for path in RECORDS.glob("evidence_*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "correlations" in record:
            assert "| truth |" in summary(record)
