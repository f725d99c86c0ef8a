"""A rig that measures step by step: what it gives does not depend on the steps, nor on other sensors."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_scenes import CAMERA, LIDAR, RADAR, Block, make_snapshot

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.sensor_rig import SensorRig

MILLISECOND = 1_000_000
START = 1_700_000_000_000_000_000
SMALL_CAMERA = CAMERA.model_copy(
    update={
        "width": 88,
        "height": 32,
        "fx_px": 44.0,
        "fy_px": 44.0,
        "cx_px": 43.5,
        "cy_px": 15.5,
        "offset_ms": 8.0,
        "latency_ms": 25.0,
        "jitter_ms": 20.0,
    }
)
SMALL_LIDAR = LIDAR.model_copy(
    update={"num_beams": 8, "azimuth_step_deg": 4.0, "latency_ms": 50.0, "jitter_ms": 3.0, "dropout": 0.1}
)
SMALL_RADAR = RADAR.model_copy(update={"rate_hz": 13.0, "latency_ms": 20.0, "clutter": 3.0})
RIG = Rig(name="three", sensors=(SMALL_LIDAR, SMALL_CAMERA, SMALL_RADAR))


@lru_cache(maxsize=256)
def world(stamp_ns: int) -> Snapshot:
    """A car ahead that drives away from a robot that drives as well."""
    time_s = (stamp_ns - START) * 1e-9
    made = make_snapshot(
        Block((15.0 + 12.0 * time_s, 2.0), velocity=(12.0, 0.0)),
        Block((8.0, -6.0), (0.4, 30.0, 4.0), class_name=None),
        pose=SE3.planar(5.0 * time_s, 0.0, 0.1),
        speed=5.0,
    )
    object.__setattr__(made, "stamp_ns", stamp_ns)
    return made


def everything(
    step_ms: int,
    *,
    rig: Rig = RIG,
    seed: int = 3,
    duration_ms: int = 1000,
    degradation: DegradationSchedule | None = None,
) -> list[SensorMessage]:
    sensors = SensorRig(rig, START, START + duration_ms * MILLISECOND, seed, degradation)
    messages = []
    for until_ms in range(0, duration_ms + step_ms, step_ms):
        messages += sensors.measure(START + until_ms * MILLISECOND, world)
    return sorted(messages, key=lambda m: (m.arrival_ns, m.sensor))


def of(messages: list[SensorMessage], sensor: str) -> list[SensorMessage]:
    return [m for m in messages if m.sensor == sensor]


def same(a: SensorMessage, b: SensorMessage) -> bool:
    if (a.sensor, a.stamp_ns, a.arrival_ns) != (b.sensor, b.stamp_ns, b.arrival_ns):
        return False
    return same_payload(a, b)


def same_payload(a: SensorMessage, b: SensorMessage) -> bool:
    if isinstance(a.payload, ImageSample):
        return np.array_equal(a.payload.rgb_HW3, b.payload.rgb_HW3)
    return all(np.array_equal(values, b.payload.fields[name]) for name, values in a.payload.fields.items())


def schedule(*entries: dict[str, object]) -> DegradationSchedule:
    return DegradationSchedule.model_validate({"name": "test", "entries": entries})


BAD_DAY = schedule(
    {"effect": "rain", "from_s": 0.2, "ramp_s": 0.5},
    {"effect": "packet_loss", "share": 0.3},
    {"effect": "latency", "sensors": "camera", "extra_ms": 90.0, "from_s": 0.4, "to_s": 0.6},
    {"effect": "dirt"},
    {"effect": "noise", "ramp_s": 1.0},
    {"effect": "miscalibration", "sensors": "lidar", "ramp_s": 0.5},
    {"effect": "freeze", "sensors": "front", "from_s": 0.7},
    {"effect": "clock_offset", "sensors": "radar"},
)


@pytest.mark.parametrize("degradation", [None, BAD_DAY])
@pytest.mark.parametrize("step_ms", [20, 100, 370])
def test_messages_do_not_depend_on_the_length_of_the_steps(
    step_ms: int, degradation: DegradationSchedule | None
) -> None:
    fine = everything(10, degradation=degradation)
    coarse = everything(step_ms, degradation=degradation)

    assert len(fine) == len(coarse) > 15
    assert all(same(a, b) for a, b in zip(fine, coarse, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(0, 2**31))
def test_any_steps_give_each_measurement_once(steps_ms: list[int], seed: int) -> None:
    stamps = np.cumsum([*steps_ms, 400]) * MILLISECOND + START
    rig = Rig(name="radars", sensors=(SMALL_LIDAR, SMALL_RADAR))
    sensors = SensorRig(rig, START, int(stamps[-1]), seed)
    foreseen = sensors.due(int(stamps[-1]))
    measured = []
    for until_ns in stamps.tolist():
        messages = sensors.measure(until_ns, world)
        assert all(m.stamp_ns <= until_ns for m in messages)
        measured += [(m.stamp_ns, m.sensor) for m in messages]
        assert sensors.due(until_ns) == []

    assert sorted(measured) == sorted(foreseen)
    assert [stamp for stamp, _ in measured] == sorted(stamp for stamp, _ in measured)


def test_sensors_do_not_depend_on_each_other() -> None:
    alone = everything(20, rig=Rig(name="two", sensors=(SMALL_RADAR, SMALL_LIDAR)))
    together = everything(20)

    for name in ("top", "radar_front"):
        a, b = of(alone, name), of(together, name)
        assert len(a) == len(b) > 8
        assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_another_seed_gives_other_noise_and_other_arrivals() -> None:
    first, second = of(everything(50), "top"), of(everything(50, seed=4), "top")

    assert [m.stamp_ns for m in first] == [m.stamp_ns for m in second]
    assert not any(
        a.arrival_ns == b.arrival_ns or same_payload(a, b) for a, b in zip(first, second, strict=True)
    )


def test_stamps_keep_rate_and_offset_and_end_with_the_episode() -> None:
    messages = everything(30, duration_ms=950)

    assert [m.stamp_ns - START for m in of(messages, "top")] == [k * 100 * MILLISECOND for k in range(10)]
    assert [m.stamp_ns - START for m in of(messages, "front")] == [
        (8 + k * 100) * MILLISECOND for k in range(10)
    ]
    radar = np.array([m.stamp_ns - START for m in of(messages, "radar_front")])
    np.testing.assert_array_equal(np.diff(radar), round(1e9 / 13))
    assert 0 < radar[0] < 1e9 / 13


def test_a_sensors_messages_do_not_overtake_each_other() -> None:
    jumpy = Rig(name="one", sensors=(SMALL_LIDAR.model_copy(update={"rate_hz": 100.0, "jitter_ms": 40.0}),))
    sensors = SensorRig(jumpy, START, START + 500 * MILLISECOND, 0)
    messages = sensors.measure(START + 500 * MILLISECOND, world)

    stamps = [m.stamp_ns for m in messages]
    arrivals = [m.arrival_ns for m in messages]
    assert stamps == sorted(stamps)
    assert np.all(np.diff(arrivals) > 0)
    assert all(arrival >= stamp for arrival, stamp in zip(arrivals, stamps, strict=True))


def test_the_world_is_asked_once_per_stamp_and_never_beyond_what_is_known() -> None:
    asked: list[int] = []

    def ask(stamp_ns: int) -> Snapshot:
        asked.append(stamp_ns)
        return world(stamp_ns)

    twin = SMALL_LIDAR.model_copy(update={"name": "rear", "topic": "/rear"})
    sensors = SensorRig(Rig(name="two", sensors=(SMALL_LIDAR, twin)), START, START + 900 * MILLISECOND, 0)
    for until_ms in (150, 320, 1000):
        sensors.measure(START + until_ms * MILLISECOND, ask)
        assert max(asked) <= START + until_ms * MILLISECOND

    assert asked == [START + k * 100 * MILLISECOND for k in range(10)]


def test_a_recorded_measurement_replaces_the_modelled_one_with_its_own_stamp() -> None:
    real = PointsSample({name: np.full(5, 7.0, np.float32) for name in ("x", "y", "z", "intensity")})

    def recorded(sensor: str, stamp_ns: int) -> tuple[int, PointsSample] | None:
        return (stamp_ns - 3, real) if sensor == "top" and stamp_ns >= START + 200 * MILLISECOND else None

    sensors = SensorRig(RIG, START, START + 400 * MILLISECOND, 3)
    messages = sensors.measure(START + 400 * MILLISECOND, world, recorded)
    modelled = of(everything(20), "top")

    lidar = of(messages, "top")
    assert [m.payload is real for m in lidar] == [False, False, True, True, True]
    assert same(lidar[0], modelled[0])
    assert lidar[2].stamp_ns == modelled[2].stamp_ns - 3
    assert lidar[2].arrival_ns == modelled[2].arrival_ns - 3
    assert all(m.payload is not real for m in of(messages, "front"))


def test_a_schedule_for_another_rig_and_a_backward_episode_are_refused() -> None:
    with pytest.raises(ConfigError, match="'rear', which rig 'three' does not have; name one of top, front"):
        SensorRig(RIG, START, START, 0, schedule({"effect": "death", "sensors": "rear"}))
    with pytest.raises(InputError, match="the end is earlier"):
        SensorRig(RIG, START, START - 1, 0)


# ------------------------------------------------------------------ with a degradation


def test_what_is_not_degraded_is_the_same_as_on_the_intact_rig() -> None:
    intact = everything(20)
    degraded = everything(
        20, degradation=schedule({"effect": "packet_loss"}, {"effect": "dirt", "from_s": 0.5})
    )

    kept = {(m.sensor, m.stamp_ns): m for m in intact}
    assert 0.3 < len(degraded) / len(intact) < 0.7
    for message in degraded:
        before = kept[message.sensor, message.stamp_ns]
        dirty = message.sensor == "front" and message.stamp_ns >= START + 500 * MILLISECOND
        assert same_payload(message, before) == (not dirty)
        assert message.arrival_ns == before.arrival_ns


def test_a_dead_sensor_is_silent_from_then_on_and_others_are_not() -> None:
    messages = everything(
        20, degradation=schedule({"effect": "death", "sensors": "front", "from_s": 0.5, "to_s": 0.8})
    )

    front = [(m.stamp_ns - START) // MILLISECOND for m in of(messages, "front")]
    assert front == [8, 108, 208, 308, 408, 808, 908]
    assert len(of(messages, "top")) == 11


def test_a_frozen_camera_repeats_its_last_picture_with_new_stamps() -> None:
    messages = of(
        everything(
            20, degradation=schedule({"effect": "freeze", "sensors": "front", "from_s": 0.25, "to_s": 0.6})
        ),
        "front",
    )
    intact = of(everything(20), "front")

    assert [(a.stamp_ns, a.arrival_ns) for a in messages] == [(b.stamp_ns, b.arrival_ns) for b in intact]
    assert [same_payload(a, messages[2]) for a in messages] == [k in (2, 3, 4, 5) for k in range(10)]
    assert same_payload(messages[6], intact[6])


def test_a_sensor_that_is_frozen_from_the_start_repeats_its_first_measurement() -> None:
    messages = of(everything(20, degradation=schedule({"effect": "freeze"})), "top")

    assert same_payload(messages[0], of(everything(20), "top")[0])
    assert all(same_payload(m, messages[0]) for m in messages)


def test_a_clock_offset_moves_stamps_and_neither_pictures_nor_arrivals() -> None:
    shifted = of(
        everything(20, degradation=schedule({"effect": "clock_offset", "offset_ms": -35.0})), "front"
    )
    intact = of(everything(20), "front")

    for a, b in zip(shifted, intact, strict=True):
        assert a.stamp_ns == b.stamp_ns - 35 * MILLISECOND
        assert a.arrival_ns == b.arrival_ns
        assert same_payload(a, b)


def test_latency_delays_arrivals_and_keeps_their_order() -> None:
    late = of(
        everything(
            20, degradation=schedule({"effect": "latency", "extra_ms": 250.0, "from_s": 0.3, "to_s": 0.6})
        ),
        "top",
    )
    intact = of(everything(20), "top")

    delays = np.array([a.arrival_ns - b.arrival_ns for a, b in zip(late, intact, strict=True)]) / MILLISECOND
    np.testing.assert_allclose(delays[[0, 1, 2, 3, 4, 5]], [0, 0, 0, 250, 250, 250])
    # What was measured right after waits for what is still on its way.
    assert 120 < delays[6] < 180
    assert np.all(np.diff([m.arrival_ns for m in late]) > 0)


def test_weather_of_a_schedule_reaches_all_sensors() -> None:
    foggy = everything(20, degradation=schedule({"effect": "fog", "extinction": 0.2, "from_s": 0.5}))
    intact = everything(20)

    for name, begins in (("front", 5), ("top", 5)):
        a, b = of(foggy, name), of(intact, name)
        equal = [same_payload(x, y) for x, y in zip(a, b, strict=True)]
        assert equal == [k < begins for k in range(len(a))]
    radar = zip(of(foggy, "radar_front"), of(intact, "radar_front"), strict=True)
    assert all(same_payload(a, b) for a, b in radar)  # fog is no matter to it


def test_a_recorded_cloud_is_moved_as_the_true_mount_has_it() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (50, 3)).astype(np.float32)
    real = PointsSample({**dict(zip("xyz", points.T, strict=True)), "intensity": np.ones(50, np.float32)})
    turned = schedule({"effect": "miscalibration", "rotation_deg": 5.0, "translation": 0.5})
    rig = Rig(name="one", sensors=(SMALL_LIDAR,))
    message = SensorRig(rig, START, START, 1, turned).measure(START, world, lambda name, t: (t, real))[0]

    moved = np.stack([message.payload.fields[axis] for axis in "xyz"], axis=-1)
    # A rigid motion: distances stay, and the turn has the stated angle.
    np.testing.assert_allclose(
        np.linalg.norm(moved[1:] - moved[:-1], axis=1),
        np.linalg.norm(np.diff(points, axis=0), axis=1),
        atol=1e-4,
    )
    u, _, vt = np.linalg.svd((points - points.mean(0)).T @ (moved - moved.mean(0)))
    angle = np.arccos((np.trace(u @ vt) - 1.0) / 2.0)
    assert np.degrees(angle) == pytest.approx(5.0, abs=1e-3)
