"""Schedules are read strictly, and each effect does what its documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sensor_scenes import CAMERA, LIDAR, RADAR, Block, make_snapshot, straight_road

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import Rig, load_rig
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.simulation.camera import render_camera
from e2e_perception.simulation.degradation import (
    ENTRY_TYPES,
    DegradationSchedule,
    load_degradation,
    shipped_degradations,
)
from e2e_perception.simulation.impairment import Impairment
from e2e_perception.simulation.lidar import simulate_lidar
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.scene import Conditions

ROOT = Path(__file__).resolve().parents[2]
RIG = Rig(name="three", sensors=(LIDAR, CAMERA, RADAR))
SCENE = make_snapshot(
    Block((15.0, 2.0)), Block((8.0, -6.0), (30.0, 0.4, 4.0), class_name=None), road=straight_road()
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def schedule(*entries: dict[str, object]) -> DegradationSchedule:
    return DegradationSchedule.model_validate({"name": "test", "entries": entries})


def impairment(*entries: dict[str, object], seed: int = 1, start_yaw: float = 0.0) -> Impairment:
    return Impairment(schedule(*entries), RIG, 0, seed, start_yaw)


def picture() -> ImageSample:
    return render_camera(SCENE, CAMERA, rng())


def spoiled_picture(seed: int = 1, time_s: float = 0.0, **entry: object) -> np.ndarray:
    sample = impairment(entry, seed=seed).spoiled(CAMERA, round(time_s * 1e9), picture(), rng())
    assert isinstance(sample, ImageSample)
    return sample.rgb_HW3.astype(int)


def spoiled_points(sensor: object, sample: PointsSample, **entry: object) -> PointsSample:
    after = impairment(entry).spoiled(sensor, 0, sample, rng(5))  # type: ignore[arg-type]
    assert isinstance(after, PointsSample)
    return after


def xyz(sample: PointsSample) -> np.ndarray:
    return np.stack([sample.fields[axis] for axis in "xyz"], axis=-1).astype(np.float64)


# ------------------------------------------------------------------ schedules


@given(
    strength=st.floats(0, 1),
    from_s=st.floats(0, 100),
    length=st.floats(0.01, 100),
    ramp_s=st.floats(0, 50),
    time_s=st.floats(-10, 300),
)
def test_the_level_rises_to_the_strength_and_is_zero_outside(
    strength: float, from_s: float, length: float, ramp_s: float, time_s: float
) -> None:
    entry = schedule(
        {"effect": "blur", "strength": strength, "from_s": from_s, "to_s": from_s + length, "ramp_s": ramp_s}
    ).entries[0]
    level = entry.level(time_s)

    assert 0.0 <= level <= strength
    if not from_s <= time_s < from_s + length:
        assert level == 0.0
    elif time_s - from_s >= ramp_s:
        assert level == strength
    else:
        assert level == pytest.approx(strength * (time_s - from_s) / ramp_s)


@pytest.mark.parametrize("name", sorted(shipped_degradations()))
def test_shipped_schedules_fit_the_tiny_rig_and_say_what_they_are(name: str) -> None:
    made = load_degradation(name)

    made.check(load_rig(config_dir() / "rigs" / "tiny.yaml"))
    assert made.name == name
    assert made.description.endswith(".")
    assert made.entries


def test_the_examples_that_the_documentation_promises_are_shipped() -> None:
    assert set(shipped_degradations()) == {
        "rain",
        "fog",
        "night",
        "glare",
        "dirt",
        "lidar_beam_loss",
        "front_camera_dies",
        "miscalibration",
        "clock_offset",
        "packet_loss",
        "all_sensors_die",
        "cameras_only",
    }


def test_every_effect_and_parameter_is_in_the_documentation_with_its_default() -> None:
    text = (ROOT / "docs" / "degradations.md").read_text(encoding="utf-8")
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `(\w+)` \| [^|]*\|[^|]*\|.*$", text, re.MULTILINE)}
    common = set(ENTRY_TYPES[0].__mro__[2].model_fields)
    for made in ENTRY_TYPES:
        effect = made.model_fields["effect"].annotation.__args__[0]  # type: ignore[union-attr]
        assert effect in rows
        for name, field in made.model_fields.items():
            if name not in common | {"effect"}:
                assert re.search(rf"`{name}` {field.default:g}\b", rows[effect]), (effect, name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entries: [{effect: rain, rate_mm_h: 20", "not valid YAML"),
        ("- effect: rain", "is list, expected a mapping with `entries:`"),
        ("", "is NoneType, expected a mapping"),
        ("entries: [{effect: snow}]", "entries.0: .*'snow'.*'rain', 'fog'"),
        ("entries: [{strength: 1.0}]", "entries.0: .*effect"),
        ("entries: [{effect: rain, rate: 3}]", "entries.0.rain.rate: Extra inputs"),
        ("entries: [{effect: rain}]\nseed: 3", "seed: Extra inputs"),
        ("entries: [{effect: blur, strength: 1.5}]", "entries.0.blur.strength: .*less than or equal to 1"),
        ("entries: [{effect: blur, strength: .nan}]", "entries.0.blur.strength"),
        ("entries: [{effect: blur, from_s: -1}]", "entries.0.blur.from_s: .*greater than or equal to 0"),
        (
            "entries: [{effect: blur, from_s: 4, to_s: 2}]",
            "to_s is 2, which is not after from_s, 4; swap them, or leave to_s out",
        ),
        ("entries: [{effect: fog, sensors: camera}]", "all sensors have the same weather; leave sensors out"),
        ("entries: [{effect: death, ramp_s: 1}]", "is on or off: leave out ramp_s; strength is the share"),
        ("entries: 3", "entries: .*tuple"),
    ],
)
def test_a_malformed_file_is_refused_with_the_key_and_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_degradation(path)
    assert "broken.yaml" in str(refused.value)


def test_an_unknown_name_is_refused_with_the_shipped_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no degradation 'snow': neither a file nor .*all_sensors_die.*, rain"
    ):
        load_degradation("snow")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_degradation(path)


def test_schedules_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_degradation("fog").entries[0].strength = 0.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"effect": "death", "sensors": "rear"},
            r"entry 0 \(death\) is for 'rear'.*name one of top, front, rad",
        ),
        ({"effect": "dirt", "sensors": "top"}, "only exists for camera; of these rig 'three' has front"),
        ({"effect": "beam_loss", "sensors": "radar"}, "only exists for lidar; of these rig 'three' has top"),
    ],
)
def test_an_entry_without_a_sensor_is_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule(entry).check(RIG)


def test_an_effect_for_all_acts_on_those_that_it_exists_for() -> None:
    made = schedule({"effect": "range_loss"})

    made.check(RIG)
    assert [bool(made.active(sensor, 0.0)) for sensor in RIG.sensors] == [True, False, True]


# ------------------------------------------------------------------ strengths


@given(share=st.floats(0.01, 1.0), time_s=st.floats(0, 60))
@pytest.mark.parametrize("name", ["fog", "rain", "dirt", "packet_loss", "clock_offset", "lidar_beam_loss"])
def test_a_scaled_schedule_has_a_share_of_every_level_at_all_times(
    name: str, share: float, time_s: float
) -> None:
    made = load_degradation(name)
    for whole, part in zip(made.entries, made.scaled(share).entries, strict=True):
        assert part.level(time_s) == pytest.approx(share * whole.level(time_s))


def test_scaling_keeps_times_and_names_and_the_whole_is_the_same() -> None:
    made = load_degradation("rain")

    assert made.scaled(1.0) == made
    assert made.scaled(0.5).name == "rain"
    assert [(e.from_s, e.ramp_s) for e in made.scaled(0.5).entries] == [(2.0, 5.0)]


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_that_is_no_share_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0 and at most 1"):
        load_degradation("fog").scaled(strength)


def share_on(made: DegradationSchedule, first_s: float, last_s: float) -> float:
    times = np.arange(first_s, last_s, 0.01) + 0.005
    return float(np.mean([made.entries[0].level(float(time_s)) for time_s in times]))


@pytest.mark.parametrize("effect", ["death", "freeze"])
@pytest.mark.parametrize("strength", [1.0, 2.0 / 3.0, 1.0 / 3.0])
def test_a_switch_is_on_for_its_share_of_each_period(effect: str, strength: float) -> None:
    endless = schedule({"effect": effect, "from_s": 2.0}).scaled(strength)
    short = schedule({"effect": effect, "from_s": 2.0, "to_s": 3.0}).scaled(strength)

    assert share_on(endless, 0.0, 2.0) == 0.0
    for first_s in (2.0, 5.0, 20.0):
        assert share_on(endless, first_s, first_s + 3.0) == pytest.approx(strength, abs=0.005)
        assert endless.entries[0].level(first_s + 0.01) == 1.0  # it begins with it
    assert share_on(short, 2.0, 3.0) == pytest.approx(strength, abs=0.01)
    assert share_on(short, 3.0, 20.0) == 0.0


def test_a_sensor_that_freezes_again_and_again_shows_the_latest_time() -> None:
    made = impairment({"effect": "freeze", "sensors": "front", "from_s": 1.0, "strength": 0.5})
    since = [made.frozen_since_ns(CAMERA, round(t * 1e9)) for t in (0.9, 1.1, 2.4, 2.6, 3.9, 4.1, 6.0)]

    assert since == [None, 10**9, 10**9, None, None, 4 * 10**9, None]


def test_a_loose_plug_loses_messages_while_it_is_out() -> None:
    made = impairment({"effect": "death", "sensors": "top", "strength": 1.0 / 3.0})
    lost = [made.delivery(LIDAR, k * 10**8, rng()).lost for k in range(60)]

    assert lost == [k % 30 < 10 for k in range(60)]


# ------------------------------------------------------------------ weather


def test_weather_comes_from_its_time_on_and_is_never_less_than_the_worlds_own() -> None:
    made = schedule(
        {"effect": "rain", "rate_mm_h": 40.0, "from_s": 2.0, "ramp_s": 4.0},
        {"effect": "fog", "extinction": 0.03, "strength": 0.5, "from_s": 10.0},
    )
    own = Conditions(haze=0.002, rain=5.0)

    assert made.conditions(own, 1.9, 0.0) == own
    assert made.conditions(own, 2.1, 0.0).rain == 5.0
    assert made.conditions(own, 4.0, 0.0).rain == pytest.approx(20.0)
    assert made.conditions(own, 9.0, 0.0).rain == pytest.approx(40.0)
    assert made.conditions(own, 9.0, 0.0).haze == 0.002
    assert made.conditions(own, 10.0, 0.0).haze == pytest.approx(0.017)


def test_night_darkens_the_day_and_does_not_light_up_a_darker_one() -> None:
    made = schedule({"effect": "night", "brightness": 0.2, "strength": 0.5})

    assert made.conditions(Conditions(brightness=1.0), 0.0, 0.0).brightness == pytest.approx(0.6)
    assert made.conditions(Conditions(brightness=0.1), 0.0, 0.0).brightness == pytest.approx(0.1)
    assert sum(made.conditions(Conditions(), 0.0, 0.0).sky) < 0.7 * sum(Conditions().sky)


def test_glare_stands_where_the_robot_headed_at_the_start() -> None:
    made = schedule({"effect": "glare", "azimuth_deg": 10.0, "elevation_deg": 6.0, "strength": 0.7})
    conditions = made.conditions(Conditions(), 3.0, 1.0)

    assert conditions.glare == 0.7
    np.testing.assert_allclose(conditions.sun, (1.0 + np.deg2rad(10.0), np.deg2rad(6.0)))


def test_a_cloudy_night_is_no_brighter_than_a_clear_one() -> None:
    night = Conditions(brightness=0.2, sky=(22, 26, 40))
    for effect in ("rain", "fog"):
        sky = schedule({"effect": effect}).conditions(night, 0.0, 0.0).sky
        assert max(sky) <= 41


# ------------------------------------------------------------------ pictures


def test_dirt_stays_where_it_is_for_an_episode_and_is_elsewhere_in_another() -> None:
    clean = picture().rgb_HW3.astype(int)
    first, later = (spoiled_picture(effect="dirt", time_s=t) for t in (0.0, 7.0))
    other = spoiled_picture(effect="dirt", seed=2)

    covered = np.abs(first - clean).max(axis=-1) > 3
    np.testing.assert_array_equal(first, later)
    assert 0.1 < covered.mean() < 0.9
    assert np.mean((np.abs(other - clean).max(axis=-1) > 3) != covered) > 0.1


def test_half_the_strength_of_dirt_covers_half_as_much() -> None:
    clean = picture().rgb_HW3.astype(float)
    full = spoiled_picture(effect="dirt", opacity=1.0) - clean
    half = spoiled_picture(effect="dirt", opacity=1.0, strength=0.5) - clean

    np.testing.assert_allclose(half, 0.5 * full, atol=1.5)


def test_blur_has_the_stated_width_at_any_size_of_the_picture() -> None:
    made = impairment({"effect": "blur", "sigma_deg": 0.8})
    for width in (704, 352):
        edge = np.zeros((32, width, 3), np.uint8)
        edge[:, width // 2 :] = 200
        after = made.spoiled(CAMERA, 0, ImageSample(edge), rng())
        slope = np.diff(after.rgb_HW3[16, :, 0].astype(float)) / 200.0  # type: ignore[union-attr]
        x = np.arange(width - 1) - (width // 2 - 1)
        sigma_px = np.sqrt((slope * x**2).sum())
        assert sigma_px == pytest.approx(np.deg2rad(0.8) * 352.0 * width / 704, rel=0.05)


def test_pixel_noise_has_the_stated_deviation() -> None:
    gray = ImageSample(np.full((64, 64, 3), 128, np.uint8))
    after = impairment({"effect": "noise", "pixel_std": 20.0}).spoiled(CAMERA, 0, gray, rng())

    assert after.rgb_HW3.astype(float).std() == pytest.approx(20.0, rel=0.03)  # type: ignore[union-attr]


def test_effects_leave_their_input_alone() -> None:
    before = picture()
    copy = before.rgb_HW3.copy()
    made = impairment({"effect": "dirt"}, {"effect": "blur"}, {"effect": "noise"})
    made.spoiled(CAMERA, 0, before, rng())

    np.testing.assert_array_equal(before.rgb_HW3, copy)


def test_a_measurement_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(InputError, match="sensor 'front' is a camera, but measured PointsSample"):
        impairment({"effect": "noise"}).spoiled(CAMERA, 0, simulate_lidar(SCENE, LIDAR, rng()), rng())


# ------------------------------------------------------------------ points


def test_dead_beams_are_a_fixed_share_and_the_others_are_whole() -> None:
    made = impairment({"effect": "beam_loss", "share": 0.5})
    noisy = LIDAR.model_copy(update={"range_noise": 0.05})

    def by_beam(sample: PointsSample) -> np.ndarray:
        points = xyz(sample)
        elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
        return np.bincount(np.round((elevation + 25.0) / (30.0 / 31)).astype(int), minlength=32)

    dead = []
    for seed in range(2):
        before = simulate_lidar(SCENE, noisy, rng(seed))
        after = made.spoiled(noisy, seed * 10**9, before, rng())
        full, left = by_beam(before), by_beam(after)  # type: ignore[arg-type]
        assert set((left / np.maximum(full, 1))[full > 0]) == {0.0, 1.0}
        dead.append(left[full > 0] == 0)
    np.testing.assert_array_equal(dead[0], dead[1])
    assert 0.3 < dead[0].mean() < 0.7


def test_more_dead_beams_include_the_fewer() -> None:
    sample = simulate_lidar(SCENE, LIDAR, rng())
    few = spoiled_points(LIDAR, sample, effect="beam_loss", share=0.3)
    many = spoiled_points(LIDAR, sample, effect="beam_loss", share=0.9)
    all_ = spoiled_points(LIDAR, sample, effect="beam_loss", share=1.0)

    assert len(all_.fields["x"]) == 0
    assert 0 < len(many.fields["x"]) < len(few.fields["x"]) < len(sample.fields["x"])
    assert set(map(tuple, xyz(many))) < set(map(tuple, xyz(few)))


@pytest.mark.parametrize("sensor", [LIDAR, RADAR])
def test_range_loss_takes_what_is_far_and_nothing_else(sensor: object) -> None:
    simulate = simulate_lidar if sensor is LIDAR else simulate_radar
    sample = simulate(SCENE, sensor, rng(2))  # type: ignore[operator]
    after = spoiled_points(sensor, sample, effect="range_loss", share=0.85)
    near = np.linalg.norm(xyz(sample), axis=1) <= 15.0

    assert 0 < near.sum() < len(near)
    np.testing.assert_array_equal(xyz(after), xyz(sample)[near])


def test_range_noise_is_along_the_ray_and_doppler_noise_on_doppler() -> None:
    sample = simulate_lidar(SCENE, LIDAR, rng())
    after = spoiled_points(LIDAR, sample, effect="noise", range_std=0.2)
    before_r, after_r = (np.linalg.norm(xyz(s), axis=1) for s in (sample, after))
    assert np.std(after_r - before_r) == pytest.approx(0.2, rel=0.03)
    np.testing.assert_allclose(xyz(after) / after_r[:, None], xyz(sample) / before_r[:, None], atol=1e-5)

    zeros = {name: np.zeros(4000, np.float32) for name in ("y", "z", "velocity", "rcs")}
    echoes = PointsSample({"x": np.full(4000, 30.0, np.float32), **zeros})
    noisy = spoiled_points(RADAR, echoes, effect="noise", doppler_std=0.7)
    assert noisy.fields["velocity"].std() == pytest.approx(0.7, rel=0.05)
    assert {values.dtype for values in noisy.fields.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(noisy.fields["rcs"], 0.0)


# ------------------------------------------------------------------ mounts


@given(st.floats(0, 45), st.floats(0, 2), st.floats(0, 1), st.integers(0, 1000), st.integers(0, 2))
def test_the_true_mount_differs_by_the_stated_angle_and_distance(
    rotation_deg: float, translation: float, strength: float, seed: int, row: int
) -> None:
    sensor = RIG.sensors[row]
    entry = {
        "effect": "miscalibration",
        "rotation_deg": rotation_deg,
        "translation": translation,
        "strength": strength,
    }
    true = impairment(entry, seed=seed).mounted(sensor, 0)
    difference = sensor.base_from_sensor.inverse() @ true.base_from_sensor

    angle = np.degrees(np.arccos(np.clip((np.trace(difference.rotation) - 1.0) / 2.0, -1.0, 1.0)))
    assert angle == pytest.approx(strength * rotation_deg, abs=1e-4)
    assert np.linalg.norm(difference.translation) == pytest.approx(strength * translation, abs=1e-9)


def test_the_error_of_a_mount_is_constant_and_each_sensor_has_its_own() -> None:
    made = impairment({"effect": "miscalibration"})
    twin = LIDAR.model_copy(update={"name": "twin"})

    assert made.mounted(LIDAR, 0) == made.mounted(LIDAR, 10**9) != LIDAR
    assert made.mounted(LIDAR, 0).mount != made.mounted(twin, 0).mount
    assert made.mounted(LIDAR, 0) != impairment({"effect": "miscalibration"}, seed=2).mounted(LIDAR, 0)


def test_a_recorded_picture_is_turned_as_one_taken_at_the_true_mount() -> None:
    far = make_snapshot(Block((60.0, 3.0), (1.0, 8.0, 6.0), color=(255, 0, 255), class_name=None))
    made = impairment({"effect": "miscalibration", "rotation_deg": 4.0, "translation": 0.0}, seed=4)
    taken = render_camera(far, made.mounted(CAMERA, 0), rng())  # type: ignore[arg-type]
    turned = made.remounted(CAMERA, 0, render_camera(far, CAMERA, rng()))

    def middle(sample: object) -> np.ndarray:
        rgb = sample.rgb_HW3.astype(int)  # type: ignore[attr-defined]
        rows, columns = np.nonzero((rgb[..., 0] > rgb[..., 1] + 60) & (rgb[..., 2] > rgb[..., 1] + 60))
        return np.array([columns.mean(), rows.mean()])

    assert np.linalg.norm(middle(taken) - middle(render_camera(far, CAMERA, rng()))) > 5.0
    np.testing.assert_allclose(middle(turned), middle(taken), atol=1.0)


def test_recorded_points_are_those_that_the_true_mount_would_measure() -> None:
    made = impairment({"effect": "miscalibration", "rotation_deg": 6.0, "translation": 0.4})
    sample = simulate_lidar(SCENE, LIDAR, rng())
    true: SE3 = made.mounted(LIDAR, 0).base_from_sensor

    after = made.remounted(LIDAR, 0, sample)

    # Seen from where the sensor really is, they lie where they lay.
    np.testing.assert_allclose(
        true.apply(xyz(after)),  # type: ignore[arg-type]
        LIDAR.base_from_sensor.apply(xyz(sample)),
        atol=1e-4,
    )
