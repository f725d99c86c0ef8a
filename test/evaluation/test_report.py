"""The report holds what the run produced, asks the network for nothing, and survives odd input."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.results import FrameResult, Health, SafetyState, SensorReport
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.evaluation.report import (
    POINT_BYTES,
    VIEW_X,
    Picture,
    ReportFrame,
    pack_points,
    write_report,
)

RIG = Rig(
    name="test",
    sensors=(
        Camera(
            name="front",
            topic="/front",
            frame_id="front",
            mount=Mount(xyz=(1.5, 0.0, 1.5)),
            width=352,
            height=128,
            fx_px=200.0,
            fy_px=200.0,
            cx_px=176.0,
            cy_px=64.0,
        ),
        Lidar(name="top", topic="/top", frame_id="top", mount=Mount(xyz=(1.0, 0.0, 1.8))),
    ),
)
TERMS = ("imitation", "collision", "drivable", "comfort", "progress", "route")


def make_tracks(stamp_ns: int, t: float) -> Tracks:
    """Three tracks that drive along: two cars and a pedestrian."""
    starts = np.array([[18.0, 3.5], [32.0, 0.0], [14.0, -6.0]])
    velocities = np.array([[4.0, 0.0], [-1.0, 0.2], [0.4, 1.2]])
    centers = starts + velocities * t
    times = 0.5 * np.arange(1, 9)
    futures = np.stack(
        [
            centers[:, None] + scale * velocities[:, None] * times[None, :, None]
            + np.array([0.0, bend]) * times[None, :, None] ** 2
            for scale, bend in ((1.0, 0.0), (0.7, 0.1), (1.2, -0.1))
        ],
        axis=1,
    )  # fmt: skip
    n = len(centers)
    boxes = Boxes(
        centers_N3=np.column_stack([centers, [0.8, 0.8, 0.9]]).astype(np.float32),
        sizes_N3=np.array([[4.4, 1.8, 1.6], [8.0, 2.5, 3.0], [0.6, 0.7, 1.8]], np.float32),
        yaws_N=np.array([0.05, 3.1, 1.2], np.float32),
        velocities_N2=velocities.astype(np.float32),
        class_ids_N=np.array([0, 1, 2]),
        scores_N=np.array([0.9, 0.8, 0.6], np.float32),
        ids_N=np.array([4, 11, 23]),
    )
    return Tracks(
        stamp_ns=stamp_ns,
        boxes=boxes,
        ages_N=np.full(n, 9),
        coasted_N=np.array([0, 0, 2]),
        confirmed_N=np.ones(n, bool),
        position_std_N2=np.full((n, 2), 0.3, np.float32),
        futures_NMT2=futures.astype(np.float32),
        futures_std_NMT2=np.broadcast_to(0.2 * times[:, None], (n, 3, 8, 2)).astype(np.float32),
        mode_probabilities_NM=np.tile(np.array([0.6, 0.3, 0.1], np.float32), (n, 1)),
        times_T=times,
    )


def make_plan(stamp_ns: int, speed: float) -> Plan:
    """Braking gently from a speed while drifting left."""
    times = 0.5 * np.arange(1, 9)
    speeds = np.maximum(0.0, speed - 0.8 * times)
    s = np.cumsum(speeds * 0.5)
    points = np.column_stack([s, 0.0015 * s**2])
    costs = dict(zip(TERMS, (0.42, 1.1, 0.0, 0.13, 0.31, 0.06), strict=True))
    rival = dict(zip(TERMS, (0.38, 1.9, 0.02, 0.1, 0.22, 0.05), strict=True))
    return Plan(
        stamp_ns,
        times,
        points,
        np.zeros(8),
        speeds,
        np.full(8, -0.8),
        31,
        costs,
        17,
        rival,
        route_assumed=True,
    )


def make_result(index: int, *, empty: bool = False) -> FrameResult:
    """Frame `index` of a run at 10 Hz whose lidar fails for a while."""
    stamp_ns = 1_000_000_000 + index * 100_000_000
    failing = 20 <= index < 28
    health = Health(
        state=SafetyState.DEGRADED if failing else SafetyState.NOMINAL,
        reasons=("sensor top is silent",) if failing else (),
        sensors=(
            SensorReport("front", True, "", 12.0, index, index, 0),
            SensorReport("top", not failing, "silent" if failing else "", float("nan"), index, index, 0),
        ),
        backend="onnxruntime 1.0 on cpu, float32",
        bundle="tiny 012345678901",
        frames=index,
        plans=index,
        drops={"late": 1},
        stage_ms={"decode": 3.1, "prepare": 4.2 + (index % 5), "infer": 31.0 + (index % 7), "total": 45.0},
    )
    if empty:
        return FrameResult(stamp_ns, None, None, None, health)
    plan = make_plan(stamp_ns, 8.0 - 0.05 * index)
    return FrameResult(stamp_ns, make_tracks(stamp_ns, 0.1 * index), plan, None, health)


def make_frame(index: int) -> ReportFrame:
    """The same with a picture, points and odometry."""
    rng = np.random.default_rng(index)
    _, jpeg = cv2.imencode(".jpg", np.full((64, 176, 3), 90, np.uint8))
    scale = np.diag([0.5, 0.5, 1.0])
    points = rng.uniform((-20, -20, 0), (60, 20, 2), (3000, 3))
    ego = EgoState(0, SE3.planar(0.8 * index, 0.0, 0.0), np.array([8.0, 0.0, 0.0]), 0.0)
    picture = Picture(jpeg.tobytes(), 176, 64, scale @ RIG.cameras[0].image_from_base)
    return ReportFrame(make_result(index), points, {"front": picture}, ego)


SUMMARY = {
    "frames_in": 31,
    "frames_processed": 30,
    "plans": 30,
    "tracks": 3,
    "drops": {"frame_late": 1},
    "latency_ms": {
        "infer": {"p50": 31.0, "p95": 35.0, "p99": 37.0},
        "total": {"p50": 45, "p95": 50, "p99": 52},
    },
    "cpu_share": 0.62,
    "peak_memory_mb": 410.0,
}


def embedded(page: str) -> dict:
    """The JSON that the player reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture
def page(tmp_path):
    frames = [make_frame(i) for i in range(30)]
    path = write_report(
        tmp_path / "sub" / "report.html",
        frames,
        rig=RIG,
        title="A run <b>& more</b>",
        facts={"bag": "x"},
        summary=SUMMARY,
    )
    return path.read_text(encoding="utf-8")


def test_the_report_asks_for_nothing_outside_itself(page):
    # Base64 may hold `//` by chance; in the page itself it would be an address.
    data = page.index('<script type="application/json"')
    markup = page[:data] + page[page.index("</script>", data) :]
    # But for the page of its drive, a file beside it.
    assert markup.count("<iframe") == 1
    markup = markup.replace('<iframe title="The drive from above" src="${esc(D.summary.episode)}"', "")
    assert not re.search(r"""https?:|["'(=]//|@import|url\(|<link|<iframe|\bfetch\(|XMLHttp""", markup)
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_the_report_contains_every_frame_with_tracks_plan_and_reasons(page):
    data = embedded(page)
    assert len(data["frames"]) == 30
    frame = data["frames"][3]
    assert [track["id"] for track in frame["tracks"]] == [4, 11, 23]
    assert frame["tracks"][0]["box"][0] == pytest.approx(18.0 + 0.4 * 3, abs=0.01)
    assert len(frame["tracks"][0]["futures"]) == 3
    assert frame["plan"]["costs"]["collision"] == pytest.approx(1.1)
    assert "collision 0.8 lower than the runner-up" in frame["plan"]["why"]
    assert frame["pictures"]["front"]["src"].startswith("data:image/jpeg;base64,")
    assert frame["t"] == pytest.approx(0.3)
    assert data["frames"][20]["reasons"] == ["sensor top is silent"]
    assert data["summary"] == SUMMARY


def test_a_title_cannot_inject_markup(page):
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp; more" in page
    assert embedded(page)["title"] == "A run <b>& more</b>"


def test_the_same_run_gives_the_same_bytes(tmp_path):
    pages = []
    for name in ("a.html", "b.html"):
        frames = [make_frame(i) for i in range(3)]
        path = write_report(tmp_path / name, frames, rig=RIG, title="t", facts={}, summary={})
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_frames_without_results_and_non_finite_numbers_are_reported_as_absent(tmp_path):
    frames = [ReportFrame(make_result(0, empty=True)), ReportFrame(make_result(1))]
    path = write_report(
        tmp_path / "r.html", frames, rig=RIG, title="t", facts={}, summary={"cpu_share": float("nan")}
    )
    data = embedded(path.read_text(encoding="utf-8"))
    assert data["frames"][0]["tracks"] is None
    assert data["frames"][0]["plan"] is None
    assert data["frames"][0]["sensors"][1][3] is None
    assert data["summary"] == {"cpu_share": None}


def test_a_run_without_frames_still_gives_a_page(tmp_path):
    path = write_report(tmp_path / "r.html", [], rig=RIG, title="t", facts={}, summary={"frames_in": 0})
    assert embedded(path.read_text(encoding="utf-8"))["frames"] == []


def test_frames_out_of_order_are_refused(tmp_path):
    frames = [ReportFrame(make_result(1)), ReportFrame(make_result(0))]
    with pytest.raises(InputError, match="do not rise"):
        write_report(tmp_path / "r.html", frames, rig=RIG, title="t", facts={}, summary={})


def test_packed_points_are_thinned_evenly_and_keep_their_place():
    rng = np.random.default_rng(1)
    points = rng.uniform((-60, -60, 0), (120, 60, 2), (50_000, 3))
    points[:10] = np.nan
    packed = pack_points(points, 1000)
    assert len(packed) == 1000 * POINT_BYTES
    x = np.frombuffer(packed[:2000], "<i2") / 100.0
    assert x.min() > VIEW_X[0] - 0.01
    assert x.max() < VIEW_X[1] + 0.01
    assert np.min(np.abs(points[10:, 0][:, None] - x[None, :5]), axis=0).max() < 0.0051
    assert pack_points(points[:10], 1000) == b""


def test_crowded_points_count_once_per_cell():
    points = np.zeros((500, 3)) + np.array([10.05, 3.05, 0.55])
    assert len(pack_points(points, 1000)) == POINT_BYTES
