"""All perception metrics together: rows, totals, and that whoever compares evaluations can read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")

from perceived_frames import TIMES_S, boxes, estimate, plan_along, shifted, truth

from e2e_perception.core.errors import InputError
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.evaluations import PERCEPTION, PERCEPTION_ROWS, read_evaluation
from e2e_perception.evaluation.missions import load_mission
from e2e_perception.evaluation.summary import EpisodeFigures, combine, evaluate_frames, write_rows


def drive(seed: int, frames: int, objects: int) -> list[tuple[FrameResult, TruthFrame]]:
    rng = np.random.default_rng(seed)
    driven = np.stack([5.0 * TIMES_S, 0.0 * TIMES_S, 0.0 * TIMES_S], axis=1)
    pairs = []
    for k in range(frames):
        there = boxes([(i, 8.0 + 8.0 * i, rng.normal()) for i in range(objects)])
        found = shifted(
            there.select(np.flatnonzero(rng.random(objects) > 0.2)), x=float(rng.normal(0.0, 0.6))
        )
        found = replace(found, scores_N=rng.uniform(0.3, 1.0, len(found)).astype(np.float32))
        plan = plan_along(driven * rng.uniform(0.8, 1.2))
        pairs.append(
            (
                estimate(found, frame=k, plan=plan),
                truth(there, frame=k, speed=5.0, ego_future_S3=driven),
            )
        )
    return pairs


@pytest.fixture(scope="module")
def episodes() -> list[EpisodeFigures]:
    return [
        evaluate_frames(drive(1, 20, 5), scenario="highway/1@0.5", family="highway"),
        evaluate_frames(drive(2, 12, 1), scenario="merge/2@0.5", family="merge"),
    ]


def test_totals_are_those_of_all_objects_and_no_means_of_rows(episodes: list[EpisodeFigures]) -> None:
    overall = combine(episodes)
    assert (overall.scenarios, overall.frames) == (2, 32)
    first, second = (item.figures for item in episodes)
    for name, objects in (("tracking/mota", (100, 12)), ("planning/l2_at_3s_m", (20, 12))):
        weighted = np.average([first[name], second[name]], weights=objects)
        assert overall.figures[name] == pytest.approx(weighted), name
        assert overall.figures[name] != pytest.approx((first[name] + second[name]) / 2), name
    assert (
        overall.figures["tracking/id_switches"]
        == first["tracking/id_switches"] + second["tracking/id_switches"]
    )


def test_the_order_of_drives_does_not_matter_to_the_last_bit(episodes: list[EpisodeFigures]) -> None:
    assert json.dumps(combine(episodes).document()) == json.dumps(combine(episodes[::-1]).document())
    # And combining changes nothing that it is given.
    assert combine(episodes[:1]).figures == pytest.approx(episodes[0].figures, nan_ok=True)


def test_rows_and_document_are_what_comparisons_read(tmp_path: Path, episodes: list[EpisodeFigures]) -> None:
    overall = combine(episodes)
    (tmp_path / PERCEPTION).write_text(json.dumps(overall.document(), allow_nan=False), encoding="utf-8")
    write_rows(tmp_path / PERCEPTION_ROWS, episodes)
    found = read_evaluation(tmp_path)
    table = found.tables["perception"]
    assert table.scenarios_N == ("highway/1@0.5", "merge/2@0.5")
    assert set(table.figures_F) == set(overall.figures)
    assert found.pooled["detection/map"] == pytest.approx(overall.figures["detection/map"])
    assert set(found.curves) == {"precision_recall", "reliability"}
    mission = load_mission("balanced")
    wanted = {name for name in mission.ramps if not name.startswith("drive-")}
    assert wanted <= set(table.means())


def test_rows_are_the_same_bytes_in_any_order(tmp_path: Path, episodes: list[EpisodeFigures]) -> None:
    for name, order in (("a", episodes), ("b", episodes[::-1])):
        write_rows(tmp_path / name, order)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a")["family"].to_pylist() == ["highway", "merge"]
    with pytest.raises(InputError, match="no drive to write"):
        write_rows(tmp_path / "c", [])


def test_a_drive_without_anything_in_it_has_no_figures() -> None:
    nothing = evaluate_frames([], scenario="empty")
    counts = {"tracking/id_switches", "tracking/fragmentations"}
    assert {name for name, value in nothing.figures.items() if np.isfinite(value)} == counts
    assert combine([nothing]).document()["figures"]["detection/map"] is None
