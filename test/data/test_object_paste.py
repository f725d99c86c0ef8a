"""Object paste: what is put in is consistent with everything else, and only where it may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed; clips cannot be made into arrays")

from synthetic import SMALL, synthetic_clip

from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, LIDAR_CHANNELS, RADAR_CHANNELS
from e2e_perception.data import dataset
from e2e_perception.data.bev_augmentation import BevAugmentation
from e2e_perception.data.dataset import Augmentation, clip_arrays
from e2e_perception.data.object_paste import with_object
from e2e_perception.runtime.rasters import lidar_raster

Arrays = dict[str, np.ndarray]
X, Y, SIN, COS, VX, VY = (BOX_FIELDS.index(n) for n in ("x", "y", "sin_yaw", "cos_yaw", "vx", "vy"))
COUNT = LIDAR_CHANNELS.index("log_count")
DOPPLER = [RADAR_CHANNELS.index(n) for n in ("doppler_x", "doppler_y")]
PLACE, VELOCITY, YAW = np.array([14.0, 9.0]), np.array([3.0, 0.5]), 0.3


def empty(speed: float, turn: float = 0.0, num_frames: int = 4) -> Arrays:
    """A drive through nothing at a constant speed and turn, with no camera and nobody there."""
    made = clip_arrays(synthetic_clip(SMALL, num_frames=num_frames), SMALL)
    made["camera_valid"] = np.zeros_like(made["camera_valid"])
    for name in ("lidar_raster", "radar_raster", "boxes", "weights", "futures", "plan_costs"):
        made[name] = np.zeros_like(made[name])
    made["boxes"][..., COS] = 1.0
    made["ids"] = np.full_like(made["ids"], -1)
    for name in ("present", "visible", "futures_valid"):
        made[name] = np.zeros_like(made[name])
    made["memory_from_base"] = np.zeros((num_frames, 3), np.float32)
    made["memory_from_base"][1:] = 0.1 * speed, 0.0, turn
    made["ego_future"] = np.zeros_like(made["ego_future"])
    made["ego_future"][..., 0] = speed * SMALL.times_T
    made["maps_valid"] = np.zeros_like(made["maps_valid"])
    return made


def poses(arrays: Arrays) -> list[SE2]:
    found = [SE2(0.0, 0.0, 0.0)]
    for step in arrays["memory_from_base"][1:].tolist():
        found.append(found[-1] @ SE2(*step))
    return found


def with_car(arrays: Arrays, seed: int = 0) -> Arrays:
    """A car that drives over the ground at `VELOCITY` from `PLACE`, in slot 5, with returns all over it."""
    made = {name: value.copy() for name, value in arrays.items()}
    rng = np.random.default_rng(seed)
    around = rng.uniform(-0.5, 0.5, (600, 3)) * (4.2, 1.8, 1.2) + (0.0, 0.0, 1.0)
    for t, here in enumerate(poses(made)):
        base_from_world = here.inverse()
        car = base_from_world @ SE2(*(PLACE + 0.1 * t * VELOCITY), YAW)
        cloud = np.column_stack([car.apply(around[:, :2]), around[:, 2]]).astype(np.float32)
        made["lidar_raster"][t] = lidar_raster(cloud, np.full(600, 0.5, np.float32), SMALL.grid)
        made["boxes"][t, 5] = (
            *(car.x, car.y, 0.8, np.log(4.2), np.log(1.8), np.log(1.6), np.sin(car.yaw), np.cos(car.yaw)),
            *base_from_world.rotate(VELOCITY[None])[0],
        )
        later = PLACE + (0.1 * t + SMALL.times_T[:, None]) * VELOCITY
        made["futures"][t, 5] = base_from_world.apply(later)
        row, column = int(car.y + 16.0), int(car.x + 16.0)
        made["radar_raster"][t][[0, 3], row, column] = 0.5, 0.2
    made["ids"][:, 5], made["class_ids"][:, 5], made["weights"][:, 5] = 42, 0, 0.7
    made["present"][:, 5] = made["visible"][:, 5] = made["futures_valid"][:, 5] = True
    return made


def pasted(host: Arrays, donor: Arrays) -> Arrays | None:
    out = with_object(host, donor, SMALL, np.random.default_rng(0))
    return None if out is host else out


# ------------------------------------------------------------------ what is put in


@given(
    speeds=st.tuples(st.floats(0.0, 8.0), st.floats(0.0, 8.0)),
    turns=st.tuples(st.floats(-0.03, 0.03), st.floats(-0.03, 0.03)),
)
@settings(max_examples=25, deadline=None)
def test_the_object_keeps_its_way_over_the_ground_in_frames_that_move_otherwise(
    speeds: tuple[float, float], turns: tuple[float, float]
) -> None:
    host, donor = empty(speeds[0], turns[0]), with_car(empty(speeds[1], turns[1]))
    out = pasted(host, donor)
    assert out is not None
    # As if it had been there when the host was recorded.
    expected = with_car(host)
    slot = int(np.flatnonzero(out["present"][0])[0])
    for name in ("boxes", "futures", "futures_valid", "weights", "class_ids", "visible"):
        np.testing.assert_allclose(out[name][:, slot], expected[name][:, 5], atol=1e-3, err_msg=name)
    assert (out["ids"][:, slot] == out["ids"][0, slot]).all() and out["ids"][0, slot] >= 0
    centres = SMALL.grid.cell_centres_YX2()
    for t in range(4):
        got, wanted = (centres[of["lidar_raster"][t, COUNT] > 0] for of in (out, expected))
        assert len(got) >= 3
        gaps = np.linalg.norm(got[:, None] - wanted[None], axis=-1).min(axis=1)
        assert gaps.max() <= 1.5, "a cell is a metre wide"


def test_doppler_is_that_of_the_object_along_the_new_line_of_sight() -> None:
    out = pasted(empty(6.0, 0.02), with_car(empty(1.0)))
    assert out is not None
    slot = int(np.flatnonzero(out["present"][0])[0])
    for t in range(4):
        ((row, column),) = np.argwhere(out["radar_raster"][t, 0] > 0)
        place = SMALL.grid.cell_centres_YX2()[row, column].astype(float)
        sight = place / np.linalg.norm(place)
        radial = float(sight @ out["boxes"][t, slot, [VX, VY]])
        told = 10.0 * out["radar_raster"][t, DOPPLER, row, column]
        np.testing.assert_allclose(told, radial * sight, atol=0.25)  # the cell is a metre wide


def test_the_lidar_sees_nothing_behind_it_and_prices_are_not_known() -> None:
    host = empty(2.0)
    host["lidar_raster"][:, LIDAR_CHANNELS.index("ground")] = 0.5
    host["lidar_raster"][:, COUNT] = 0.3
    out = pasted(host, with_car(empty(2.0)))
    assert out is not None
    centres = SMALL.grid.cell_centres_YX2()
    along = centres @ (PLACE / np.linalg.norm(PLACE))
    aside = np.abs(centres @ np.array([-PLACE[1], PLACE[0]]) / np.linalg.norm(PLACE))
    behind = (along > 22.0) & (aside < 0.5)
    before = (along > 0.0) & (along < 12.0) & (aside < 0.5)
    assert behind.any() and not out["lidar_raster"][0, COUNT][behind].any()
    np.testing.assert_array_equal(
        out["lidar_raster"][0, COUNT][before], host["lidar_raster"][0, COUNT][before]
    )
    assert np.isnan(out["plan_costs"]).all() and not np.isnan(host["plan_costs"]).any()


# ------------------------------------------------------------------ where it may not be


def standing(host: Arrays, x: float, y: float) -> Arrays:
    row, column = int(y + 16.0), int(x + 16.0)
    host["lidar_raster"][:, LIDAR_CHANNELS.index("middle"), row, column] = 0.5
    return host


def labelled(host: Arrays, x: float, y: float) -> Arrays:
    host["boxes"][:, 0, [X, Y]] = x, y
    host["boxes"][:, 0, 3:5] = np.log(4.0), np.log(1.8)
    host["ids"][:, 0], host["present"][:, 0] = 3, True
    return host


def undrivable(host: Arrays) -> Arrays:
    host["maps"], host["maps_valid"] = np.zeros_like(host["maps"]), np.ones_like(host["maps_valid"])
    return host


def watched(host: Arrays) -> Arrays:
    host["camera_valid"][-1, 0] = 1.0
    return host


def driven(host: Arrays) -> Arrays:
    host["ego_future"][..., 0], host["ego_future"][..., 1] = np.linspace(2, 20, 8), np.linspace(0, 11, 8)
    return host


def full(host: Arrays) -> Arrays:
    host["present"][:], host["ids"][:] = True, np.arange(MAX_LABELS)
    return host


def blind(host: Arrays) -> Arrays:
    host["lidar_valid"][2] = 0.0
    return host


def unlabelled(host: Arrays) -> Arrays:
    host["labels_valid"][:] = False
    return host


@pytest.mark.parametrize(
    "host",
    [
        standing(empty(2.0), 14.0, 9.0),
        standing(empty(2.0), 7.0, 4.5),
        labelled(empty(2.0), 13.0, 8.0),
        labelled(empty(2.0), 24.0, 14.6),
        undrivable(empty(2.0)),
        watched(empty(2.0)),
        driven(empty(2.0)),
        full(empty(2.0)),
        blind(empty(2.0)),
        unlabelled(empty(2.0)),
    ],
    ids=[
        "something stands there", "something stands before it", "somebody is there", "somebody is behind it",
        "no road", "a camera looks there", "the robot drives there", "no slot", "no lidar", "nobody labelled",
    ],
)  # fmt: skip
def test_where_it_may_not_be_nothing_is_put(host: Arrays) -> None:
    assert pasted(empty(2.0), with_car(empty(2.0))) is not None, "it would be put otherwise"
    assert pasted(host, with_car(empty(2.0))) is None


def test_what_is_beside_it_or_beyond_does_not_matter() -> None:
    for host in (standing(empty(2.0), 14.0, -9.0), labelled(empty(2.0), 20.0, -9.0)):
        assert pasted(host, with_car(empty(2.0))) is not None


def test_an_object_that_is_not_seen_throughout_is_not_taken_and_short_donors_give_none() -> None:
    gone = with_car(empty(2.0))
    gone["visible"][2, 5] = False
    dark = with_car(empty(2.0))
    dark["lidar_raster"][1] = 0.0
    for donor in (gone, dark, with_car(empty(2.0, num_frames=3)), empty(2.0)):
        assert pasted(empty(2.0), donor) is None


def test_the_input_is_left_alone() -> None:
    host, donor = empty(2.0), with_car(empty(3.0))
    before = [{name: value.copy() for name, value in of.items()} for of in (host, donor)]
    assert pasted(host, donor) is not None
    for of, was in zip((host, donor), before, strict=True):
        for name, value in of.items():
            np.testing.assert_array_equal(value, was[name], err_msg=name)


def test_a_dataset_tries_as_often_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def seen(host: Arrays, donor: Arrays, network: object, rng: np.random.Generator) -> Arrays:
        tried.append(host["boxes"].shape == donor["boxes"].shape)
        return host

    class Store:
        def read(self, index: int) -> Clip:
            return synthetic_clip(SMALL, seed=index, num_frames=3)

    monkeypatch.setattr(dataset, "with_object", seen)
    clips = [(Store(), index) for index in range(4)]
    for chance, least, most in ((0.0, 0, 0), (0.5, 5, 15), (1.0, 20, 20)):
        tried.clear()
        given = dataset.ClipDataset(
            clips, SMALL, augmentation=Augmentation(bev=BevAugmentation(paste=chance))
        )
        for position in range(20):
            given[position]
        assert least <= len(tried) <= most and all(tried)
