"""Each setting of a run does what its description says, and docs/training.md says the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from small_runs import MemoryStore, log_of, run_config, stages
from torch import Tensor

from e2e_perception.data.dataset import Augmentation, ClipDataset, Dropout
from e2e_perception.model.losses import LOSSES, OBJECTIVES
from e2e_perception.training import loop as loop_module
from e2e_perception.training.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from e2e_perception.training.config import LossWeights, OnPolicy, Stage, TrainingConfig
from e2e_perception.training.loop import train
from e2e_perception.training.rollout import rollout
from e2e_perception.training.run import Run

WEIGHTS = LossWeights().model_dump()
OF_PLANS = [name for name, loss in LOSSES.items() if loss.objective == "planning"]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def trained(out: Path, steps: int = 1, **changes: Any) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of a short run, and the last step's line of its log."""
    train([MemoryStore(2)], out, run_config(steps, **changes))
    return load_checkpoint(out), [row for row in log_of(out) if "total" in row][-1]


def first_moments(run: Checkpoint) -> dict[str, Tensor]:
    """What Adam remembers of the gradients of each parameter: after one step, a tenth of them."""
    names = [name for name, _ in model_from_checkpoint(run).named_parameters()]
    moments = {k: v for k, v in run.part("optimizer").items() if k.endswith("/exp_avg")}
    found = {int(key.partition("/")[0]): value for key, value in moments.items()}
    return {names[n]: value for n, value in found.items()}


# ------------------------------------------------------------------ what is minimised


def test_factors_of_a_stage_weigh_its_losses(tmp_path: Path) -> None:
    factors = {"heat": 3.0, "plan_risk": 0.5, "mode": 0.0}
    _, row = trained(tmp_path, stages=stages(1, losses=factors))
    expected = sum(WEIGHTS[name] * factors.get(name, 1.0) * row["losses"][name] for name in LOSSES)
    assert row["total"] == pytest.approx(expected, rel=1e-5)


def test_an_objective_without_weight_teaches_nothing(tmp_path: Path) -> None:
    config = {"interfaces": "detached", "stages": stages(1, losses=dict.fromkeys(OF_PLANS, 0.0))}
    run, row = trained(tmp_path, **config)
    before = Run(run_config(**config), torch.device("cpu"), []).model.state_dict()
    weights = {
        k: v for k, v in run.part("model").items() if k.startswith("planner.") and v.is_floating_point()
    }
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not torch.equal(run.part("model")["detection.heat.weight"], before["detection.heat.weight"])
    assert row["weights"].keys() == set(OBJECTIVES) - {"planning"}


def test_a_large_gradient_of_one_module_does_not_shrink_anothers(tmp_path: Path) -> None:
    moments, weights = {}, {}
    for name, factor in (("plain", 1.0), ("large", 1e4)):
        losses = dict.fromkeys(OF_PLANS, factor)
        run, row = trained(
            tmp_path / name, interfaces="detached", clip_norm=0.5, stages=stages(1, losses=losses)
        )
        moments[name], weights[name] = first_moments(run), run.part("model")
    assert row["gradient_norm"] > 1e3, "of all modules together, before clipping"
    planner = [value for name, value in moments["large"].items() if name.startswith("planner.")]
    assert float(torch.cat([v.flatten() for v in planner]).norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)
    others = [name for name in moments["large"] if not name.startswith("planner.")]
    assert {name.partition(".")[0] for name in others} >= {"encoder", "detection", "motion"}
    for found in (moments, weights):
        assert all(torch.equal(found["plain"][name], found["large"][name]) for name in others)


def test_the_average_follows_the_weights_fast_at_first_and_then_by_its_decay(tmp_path: Path) -> None:
    config = run_config(4, ema=0.25)
    name = "planner.score.0.weight"
    expected = Run(config, torch.device("cpu"), []).average[name]
    # n / (n + 10) up to the decay that was asked for.
    for step, decay in enumerate((1 / 11, 1 / 6, 3 / 13, 0.25), start=1):
        train([MemoryStore(2)], tmp_path, config, stop_after=step)
        now = load_checkpoint(tmp_path)
        expected = decay * expected + (1.0 - decay) * now.part("model")[name]
        torch.testing.assert_close(now.part("average")[name], expected, rtol=0.0, atol=1e-7)
    assert not torch.equal(now.part("average")[name], now.part("model")[name])


def test_each_part_can_have_a_rate_of_its_own(tmp_path: Path) -> None:
    factors = {"perception": 1.0, "prediction": 2.0, "planning": 0.5}
    before = Run(run_config(), torch.device("cpu"), []).model.state_dict()
    moved = []
    for name, rates in (("one", {}), ("own", {"learning_rates": factors})):
        # Without decay a first step of Adam is the rate, whatever the gradient.
        run, _ = trained(tmp_path / name, weight_decay=0.0, warmup_steps=0, **rates)
        parameters = first_moments(run)
        moved.append({k: run.part("model")[k].double() - before[k].double() for k in parameters})
    own = {"motion": "prediction", "planner": "planning"}
    parts = set()
    for name, by_one_rate in moved[0].items():
        parts.add(part := own.get(name.partition(".")[0], "perception"))
        torch.testing.assert_close(moved[1][name], factors[part] * by_one_rate, rtol=0.0, atol=1e-6)
    assert parts == set(factors)
    assert max(float(v.abs().max()) for v in moved[0].values()) > 1e-4


# ------------------------------------------------------------------ what is seen


def test_a_stage_says_how_often_sensors_are_lost_and_how_badly_they_are_spoiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Augmentation] = []

    class Recorded(ClipDataset):
        def __init__(self, *args: Any, augmentation: Augmentation, **kwargs: Any) -> None:
            seen.append(augmentation)
            super().__init__(*args, augmentation=augmentation, **kwargs)

    monkeypatch.setattr(loop_module, "ClipDataset", Recorded)
    one_step = [
        {"name": "clean", "steps": 1, "dropout": 0.0},
        {"name": "usual", "steps": 1},
        {"name": "hard", "steps": 1, "dropout": 0.5, "degradation": 0.3, "clip_length": 2},
    ]
    train([MemoryStore(2)], tmp_path, run_config(stages=one_step, ego_noise=0.7))
    clean, usual, hard = seen
    assert (clean.dropout, clean.degradations) == (None, None)
    assert (usual.dropout, usual.degradations) == (Dropout(), None)
    assert hard.dropout == Dropout(
        lidar=0.05, camera=0.05, all_cameras=0.05, radar=0.075, memory=0.025, only_first_camera=0.05
    )
    assert hard.degradations is not None and hard.degradations.strength == 0.3
    assert [a.clip_length for a in seen] == [None, None, 2]
    assert [a.ego_noise for a in seen] == [0.7, 0.7, 0.7]


def test_the_share_of_adversarial_steps_is_kept_to(tmp_path: Path) -> None:
    totals, weights = {}, {}
    for name, share, budget in (
        ("plain", 0.0, 0.05),
        ("never", 0.0, 0.5),
        ("always", 1.0, 0.05),
        ("free", 1.0, 0.0),
    ):
        changes = {"stages": stages(1, adversarial=share), "adversarial_budget": budget}
        run, row = trained(tmp_path / name, **changes)
        totals[name], weights[name] = row["total"], run.part("model")["encoder.lidar.0.weight"]
    assert totals["never"] == totals["free"] == totals["plain"] != totals["always"]
    assert torch.equal(weights["never"], weights["plain"])
    assert not torch.equal(weights["always"], weights["plain"])


def test_the_share_of_steps_that_compare_sensors_is_kept_to(tmp_path: Path) -> None:
    rows, weights = {}, {}
    for name, share, weight in (
        ("plain", 0.0, 0.2),
        ("never", 0.0, 9.0),
        ("always", 1.0, 9.0),
        ("free", 1.0, 0.0),
    ):
        changes = {"stages": stages(1, cross_modal=share, dropout=0.0), "cross_modal_weight": weight}
        run, rows[name] = trained(tmp_path / name, **changes)
        weights[name] = run.part("model")["encoder.lidar.0.weight"]
    agreement = rows["always"]["losses"].pop("cross_modal")
    assert rows["always"]["losses"] == rows["plain"]["losses"]
    assert agreement > 0.0
    assert rows["always"]["total"] == pytest.approx(rows["plain"]["total"] + 9.0 * agreement, rel=1e-5)
    assert "cross_modal" not in rows["never"]["losses"]
    assert torch.equal(weights["never"], weights["plain"])
    assert not torch.equal(weights["always"], weights["plain"])


@pytest.mark.parametrize("memory", [True, False])
def test_without_memory_what_was_seen_before_does_not_matter_to_the_features(
    tmp_path: Path, memory: bool
) -> None:
    run, _ = trained(tmp_path, 2, memory=memory)
    model = model_from_checkpoint(run).eval()
    batch = torch.utils.data.default_collate([ClipDataset([(MemoryStore(1), 0)], model.config)[0]])
    other = {**batch, "lidar_raster": batch["lidar_raster"].clone()}
    other["lidar_raster"][:, 0] = 1.0
    with torch.no_grad():
        before, after = (rollout(model, b, boost=0.0, with_losses=False).frames for b in (batch, other))
    assert not torch.equal(before[0]["bev_memory_next"], after[0]["bev_memory_next"])
    for name in ("bev_memory_next", "heat_logits"):
        assert torch.equal(before[1][name], after[1][name]) == (not memory), name


# ------------------------------------------------------------------ what is reported


@pytest.mark.parametrize("method", ["fixed", "uncertainty", "gradnorm", "upgrad", "pcgrad", "mgda"])
def test_cosines_that_a_method_needs_anyway_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def measured(*_: Any) -> Any:
        raise AssertionError("a backward pass that nobody asked for")

    monkeypatch.setattr(loop_module, "measure_conflicts", measured)
    _, row = trained(tmp_path, balancing={"method": method})
    looks_at_gradients = method not in ("fixed", "uncertainty")
    assert ("recognition~planning" in row["cosines"]) == looks_at_gradients
    assert all(-1.001 <= value <= 1.001 for value in row["cosines"].values())


def test_cosines_of_one_log_are_all_of_the_same_place(tmp_path: Path) -> None:
    trained(tmp_path, 3, balancing={"method": "upgrad", "log_conflicts_every": 2})
    assert [bool(row["cosines"]) for row in log_of(tmp_path) if "total" in row] == [True, False, True]


# ------------------------------------------------------------------ what is documented


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """Rows of the table under a heading: default and meaning by setting."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"### {heading}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its default, those of groups by their dotted names."""
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel) and name not in ("weights", "bev"):  # those have their own places
            yield from defaults(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, default


@pytest.mark.parametrize(
    ("heading", "model"),
    [("A run", TrainingConfig), ("A stage", Stage), ("Driving before a stage", OnPolicy)],
)
def test_every_setting_is_documented_with_its_default(heading: str, model: type[BaseModel]) -> None:
    rows, known = documented(heading), dict(defaults(model))
    assert list(rows) == list(known), "all of them, in the same order"
    for name, default in known.items():
        if default is PydanticUndefined:
            assert rows[name][0] == "", name
        elif name not in ("weights", "bev", "stages"):
            written = yaml.safe_load(rows[name][0].strip("`"))
            assert written == (list(default) if isinstance(default, tuple) else default), name
