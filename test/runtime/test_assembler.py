"""Which messages make a frame, and when it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.runtime.assembler import DROP_CAUSES, FrameAssembler, SensorSync

MS = 1_000_000
S = 1_000 * MS


def make_assembler(
    sensors: Iterable[str | SensorSync] = ("lidar", "camera"),
    anchors: tuple[str, ...] = ("lidar", "camera"),
    max_wait_ms: float = 60,
    anchor_timeout_ms: float = 250,
    queue_size: int = 16,
) -> FrameAssembler:
    return FrameAssembler(
        [SensorSync(s, 0, 50 * MS) if isinstance(s, str) else s for s in sensors],
        anchors=anchors,
        max_wait_ns=round(max_wait_ms * MS),
        anchor_timeout_ns=round(anchor_timeout_ms * MS),
        queue_size=queue_size,
    )


def message(sensor: str, stamp_ms: float, latency_ms: float = 0.0, payload: object = None) -> SensorMessage:
    return SensorMessage(sensor, round(stamp_ms * MS), round((stamp_ms + latency_ms) * MS), payload)


def every(
    sensor: str, period_ms: float, start_ms: float, end_ms: float, latency_ms: float = 0.0
) -> list[SensorMessage]:
    """A sensor's messages from start (inclusive) to end (exclusive)."""
    num = math.ceil((end_ms - start_ms) / period_ms - 1e-9)
    return [message(sensor, start_ms + k * period_ms, latency_ms) for k in range(num)]


def deliver(
    assembler: FrameAssembler, messages: Iterable[SensorMessage], *, timer: bool = True
) -> list[AssembledFrame]:
    """Push in the order of arrival; poll after each message and, as a node's timer would, when due."""
    frames = []
    for item in sorted(messages, key=lambda m: m.arrival_ns):
        while timer and (due := assembler.next_deadline_ns()) is not None and due < item.arrival_ns:
            frames += assembler.poll(due)
        assembler.push(item)
        frames += assembler.poll(item.arrival_ns)
    return frames


def stamps_ms(frames: Iterable[AssembledFrame]) -> list[float]:
    return [frame.stamp_ns / MS for frame in frames]


def steps_ms(frames: list[AssembledFrame]) -> list[float]:
    stamps = stamps_ms(frames)
    return [b - a for a, b in zip(stamps, stamps[1:], strict=False)]


class TestMatching:
    def test_frame_takes_its_time_from_the_anchor_and_the_nearest_message_of_each_other_sensor(self) -> None:
        assembler = make_assembler()
        camera = [message("camera", t) for t in (80, 97, 110)]
        frames = deliver(assembler, [*camera, message("lidar", 100, 50)])
        assert stamps_ms(frames) == [100]
        assert frames[0].anchor == "lidar"
        assert frames[0].messages["camera"] is camera[1]
        assert frames[0].sequence == 0
        assert not frames[0].missing

    def test_expected_offset_shifts_where_a_match_is_sought(self) -> None:
        assembler = make_assembler(["lidar", SensorSync("camera", 30 * MS, 10 * MS)])
        camera = [message("camera", t) for t in (100, 128, 145)]
        frames = deliver(assembler, [*camera, message("lidar", 100, 60)])
        assert frames[0].messages["camera"] is camera[1]

    def test_offsets_are_relative_to_the_sensor_that_anchors(self) -> None:
        sensors = ["lidar", SensorSync("camera", 30 * MS, 10 * MS), SensorSync("radar", -20 * MS, 10 * MS)]
        assembler = make_assembler(sensors, anchors=("camera",))
        frames = deliver(
            assembler,
            [message("radar", 78, 60), message("lidar", 103, 36), message("camera", 130, 10)],
        )
        frames += assembler.poll(300 * MS)
        assert stamps_ms(frames) == [130]
        assert set(frames[0].messages) == {"camera", "radar", "lidar"}

    def test_on_a_tie_the_earlier_message_wins(self) -> None:
        for first, second in ((90, 110), (110, 90)):
            assembler = make_assembler()
            deliver(assembler, [message("camera", first), message("camera", second, 130 - second)])
            frames = deliver(assembler, [message("lidar", 100, 50)])
            assert frames[0].messages["camera"].stamp_ns == 90 * MS

    @pytest.mark.parametrize(("stamp_ms", "matched"), [(50, True), (49.999999, False), (150, True)])
    def test_tolerance_is_inclusive(self, stamp_ms: float, matched: bool) -> None:
        assembler = make_assembler()
        assembler.push(SensorMessage("camera", round(stamp_ms * MS), 150 * MS, None))
        assembler.push(message("lidar", 100, 50))
        frames = assembler.poll(300 * MS)
        assert ("camera" in frames[0].messages) is matched

    def test_slower_sensor_serves_two_frames_and_counts_once(self) -> None:
        assembler = make_assembler(["lidar", SensorSync("radar", 0, 100 * MS)], anchors=("lidar",))
        frames = deliver(assembler, every("lidar", 100, 1000, 3000, 50) + every("radar", 200, 1000, 3000, 10))
        frames += assembler.poll(3010 * MS)
        assert len(frames) == 20
        assert all("radar" in frame.messages for frame in frames)
        counts = assembler.counts()["radar"]
        assert counts.received == counts.used == 10

    def test_faster_sensor_has_unmatched_messages_and_every_anchor_period_a_frame(self) -> None:
        assembler = make_assembler(["lidar", "radar"], anchors=("lidar",))
        frames = deliver(
            assembler, every("lidar", 100, 1000, 6000, 50) + every("radar", 1000 / 13, 1000, 6000, 10)
        )
        assert len(frames) == 50
        assert all(abs(f.messages["radar"].stamp_ns - f.stamp_ns) <= 39 * MS for f in frames)
        counts = assembler.counts()["radar"]
        assert counts.used == 50
        assert sum(counts.dropped.values()) == counts.dropped["unmatched"]
        assert counts.dropped["unmatched"] + counts.pending == 15


class TestRelease:
    def test_frame_waits_for_a_late_sensor(self) -> None:
        assembler = make_assembler()
        assert not deliver(assembler, [message("lidar", 100, 10)])
        frames = deliver(assembler, [message("camera", 100, 60)])
        assert set(frames[0].messages) == {"lidar", "camera"}
        assert frames[0].emitted_ns == 160 * MS

    def test_frame_leaves_at_its_deadline_without_the_late_sensor(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("camera", 0), message("lidar", 0), message("lidar", 100, 10)])
        assert assembler.next_deadline_ns() == 170 * MS
        assert not assembler.poll(170 * MS - 1)
        frames = assembler.poll(170 * MS)
        assert frames[0].missing == {"camera": "late"}
        assert frames[0].emitted_ns == 170 * MS
        deliver(assembler, [message("camera", 100, 80)])
        # Until the next frame it might still serve that one.
        assert assembler.counts()["camera"].pending == 1
        deliver(assembler, [message("camera", 200, 5), message("lidar", 200, 10)])
        assert assembler.counts()["camera"].dropped["late"] == 1

    def test_frame_leaves_at_once_when_the_next_message_can_not_be_nearer(self) -> None:
        assembler = make_assembler()
        frames = deliver(assembler, every("camera", 100, 980, 3000, 10) + every("lidar", 100, 1000, 3000, 50))
        assert len(frames) == 20
        waits = [f.emitted_ns - f.messages["lidar"].arrival_ns for f in frames]
        assert max(waits[1:]) == 0
        assert all(f.stamp_ns - f.messages["camera"].stamp_ns == 20 * MS for f in frames)

    def test_sensor_out_of_tolerance_is_not_waited_for_once_it_has_passed(self) -> None:
        assembler = make_assembler(["lidar", SensorSync("camera", 0, 10 * MS)])
        frames = deliver(assembler, [message("camera", 120), message("lidar", 100, 50)])
        assert frames[0].missing == {"camera": "out_of_tolerance"}

    def test_camera_and_lidar_in_step_lose_nothing_and_never_wait(self) -> None:
        assembler = make_assembler(max_wait_ms=60)
        frames = deliver(
            assembler, every("camera", 100, 0, 7800, 12) + every("lidar", 100, 0, 7800, 52), timer=False
        )
        assert len(frames) == 78
        assert all(len(f.messages) == 2 and f.emitted_ns == f.stamp_ns + 52 * MS for f in frames)
        assert sum(assembler.drops().values()) == 0

    def test_every_anchor_period_yields_a_frame_with_all_other_sensors_dead(self) -> None:
        assembler = make_assembler(["lidar", "camera", "radar"])
        frames = deliver(assembler, every("lidar", 100, 0, 5000, 50))
        assert stamps_ms(frames) == [100.0 * k for k in range(50)]
        assert all(f.missing == {"camera": "silent", "radar": "silent"} for f in frames)
        waits_ms = [(f.emitted_ns - f.messages["lidar"].arrival_ns) / MS for f in frames]
        assert waits_ms[:3] == [60, 60, 60]
        assert set(waits_ms[3:]) == {0}  # silence is known by then

    def test_sensor_unplugged_and_back_is_missing_only_in_between(self) -> None:
        assembler = make_assembler()
        camera = every("camera", 100, 0, 1000, 10) + every("camera", 100, 2000, 3000, 10)
        frames = deliver(assembler, camera + every("lidar", 100, 0, 3000, 50))
        assert len(frames) == 30
        present = ["camera" in frame.messages for frame in frames]
        assert present == [True] * 10 + [False] * 10 + [True] * 10
        assert {frame.missing.get("camera") for frame in frames[12:20]} == {"silent"}

    def test_zero_wait_releases_with_what_is_there(self) -> None:
        assembler = make_assembler(max_wait_ms=0)
        frames = deliver(assembler, every("camera", 100, 0, 1000, 60) + every("lidar", 100, 0, 1000, 50))
        assert len(frames) == 10
        assert all("camera" not in frame.messages for frame in frames)

    def test_frames_leave_in_order_when_the_anchor_comes_out_of_order(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("camera", 0), message("lidar", 0)])
        frames = deliver(
            assembler, [message("lidar", 200, 5), message("lidar", 100, 110), message("camera", 200, 20)]
        )
        frames += assembler.poll(S)
        assert stamps_ms(frames) == [100, 200]

    def test_waiting_time_can_be_changed_while_frames_wait(self) -> None:
        assembler = make_assembler(max_wait_ms=60)
        deliver(assembler, [message("lidar", 100, 10)])
        assembler.update(max_wait_ns=20 * MS)
        assert assembler.next_deadline_ns() == 130 * MS
        assert len(assembler.poll(130 * MS)) == 1

    def test_nothing_is_due_when_nothing_waits(self) -> None:
        assembler = make_assembler(["lidar"], anchors=("lidar",))
        assert assembler.next_deadline_ns() is None
        assert assembler.poll(123) == []
        deliver(assembler, [message("lidar", 100)])
        assert assembler.next_deadline_ns() is None

    def test_frames_that_were_pushed_out_are_due_now(self) -> None:
        assembler = make_assembler(["lidar"], anchors=("lidar",))
        assembler.push(message("lidar", 100, 7))
        assert assembler.next_deadline_ns() == 107 * MS


class TestFailover:
    def test_next_anchor_takes_over_without_a_gap_beyond_the_timeout(self) -> None:
        assembler = make_assembler(anchor_timeout_ms=250)
        frames = deliver(assembler, every("lidar", 100, 0, 1000, 50) + every("camera", 100, 10, 3000, 10))
        anchors = [frame.anchor for frame in frames]
        assert anchors == ["lidar"] * 10 + ["camera"] * (len(frames) - 10)
        assert len(frames) >= 28
        released = [frame.emitted_ns / MS for frame in frames]
        assert max(b - a for a, b in zip(released, released[1:], strict=False)) <= 250 + 100
        assert max(steps_ms(frames)) <= 250 + 100
        assert assembler.num_failovers == 1

    def test_failover_happens_by_timer_alone(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("camera", 0), message("lidar", 0)])
        deliver(assembler, [message("camera", 100), message("camera", 200)])
        assert assembler.next_deadline_ns() == 250 * MS
        frames = assembler.poll(250 * MS)
        assert assembler.anchor == "camera"
        assert stamps_ms(frames) == []  # it may still wait for the lidar ...
        frames = assembler.poll(260 * MS)
        assert stamps_ms(frames) == [200]  # ... but no longer than its own deadline

    def test_better_anchor_takes_back_over_and_no_period_yields_two_frames(self) -> None:
        for shift_ms in (-45, -5, 0, 5, 45):
            assembler = make_assembler()
            lidar = every("lidar", 100, 0, 1000, 50) + every("lidar", 100, 2000 + shift_ms, 4000, 50)
            frames = deliver(assembler, lidar + every("camera", 100, 0, 4000, 10))
            assert frames[-1].anchor == "lidar", shift_ms
            changes = sum(a.anchor != b.anchor for a, b in zip(frames, frames[1:], strict=False))
            assert changes == 2, shift_ms
            assert min(steps_ms(frames)) >= 50, shift_ms
            assert max(steps_ms(frames)) <= 350, shift_ms

    def test_one_stray_message_does_not_take_the_anchor_back(self) -> None:
        assembler = make_assembler()
        lidar = [*every("lidar", 100, 0, 500, 50), message("lidar", 1500, 50)]
        frames = deliver(assembler, lidar + every("camera", 100, 0, 3000, 10))
        assert {frame.anchor for frame in frames if frame.stamp_ns > 600 * MS} == {"camera"}
        assert assembler.counts()["lidar"].dropped["late"] == 1

    def test_anchor_that_lags_beyond_the_wait_still_takes_back_over(self) -> None:
        assembler = make_assembler(max_wait_ms=20)
        lidar = every("lidar", 100, 0, 500, 120) + every("lidar", 100, 2000, 4000, 120)
        frames = deliver(assembler, lidar + every("camera", 100, 0, 4000, 10))
        assert frames[-1].anchor == "lidar"
        assert min(steps_ms(frames)) >= 50
        assert max(steps_ms(frames)) <= 350

    def test_anchor_that_repeats_one_message_counts_as_silent(self) -> None:
        assembler = make_assembler()
        frozen = [SensorMessage("lidar", 400 * MS, (400 + 100 * k) * MS, None) for k in range(20)]
        frames = deliver(assembler, every("lidar", 100, 0, 400) + frozen + every("camera", 100, 0, 2400, 10))
        assert frames[-1].anchor == "camera"
        assert assembler.counts()["lidar"].dropped["duplicate"] == 19

    def test_anchor_that_never_speaks_is_replaced(self) -> None:
        assembler = make_assembler()
        frames = deliver(assembler, every("camera", 100, 0, 2000, 10))
        assert {frame.anchor for frame in frames} == {"camera"}
        assert frames[0].stamp_ns <= 300 * MS

    def test_dead_anchor_stays_while_no_other_is_alive_and_the_first_to_speak_takes_over(self) -> None:
        assembler = make_assembler()
        deliver(assembler, every("lidar", 100, 0, 500, 10))
        assert assembler.poll(5000 * MS) == []
        assert assembler.anchor == "lidar"
        frames = deliver(assembler, [message("camera", 6000)])
        frames += assembler.poll(6100 * MS)
        assert [(f.anchor, f.stamp_ns) for f in frames] == [("camera", 6000 * MS)]

    def test_anchor_timeout_can_be_changed_while_running(self) -> None:
        assembler = make_assembler(anchor_timeout_ms=250)
        deliver(assembler, [message("camera", 0), message("lidar", 0), message("camera", 100)])
        assembler.update(anchor_timeout_ns=150 * MS)
        assembler.poll(150 * MS)
        assert assembler.anchor == "camera"


class TestDrops:
    def test_duplicates_are_counted_and_change_nothing(self) -> None:
        lidar = every("lidar", 100, 0, 1000, 50)
        camera = every("camera", 100, 0, 1000, 10)
        once, twice = make_assembler(), make_assembler()
        frames = deliver(once, lidar + camera)
        assert deliver(twice, [m for m in lidar + camera for _ in range(2)]) == frames
        assert twice.drops() == {**dict.fromkeys(DROP_CAUSES, 0), "duplicate": 20}

    def test_duplicate_of_a_waiting_older_message_is_found(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("camera", 100), message("camera", 120)])
        assembler.push(SensorMessage("camera", 100 * MS, 130 * MS, None))
        assert assembler.counts()["camera"].dropped["duplicate"] == 1

    def test_message_behind_its_sensor_and_behind_the_output_is_out_of_order(self) -> None:
        assembler = make_assembler()
        deliver(assembler, every("camera", 100, 0, 1000, 10) + every("lidar", 100, 0, 1000, 50))
        for sensor in ("camera", "lidar"):
            assembler.push(SensorMessage(sensor, 555 * MS, 1000 * MS, None))
            assert assembler.counts()[sensor].dropped["out_of_order"] == 1

    def test_message_out_of_order_but_in_time_is_used(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("camera", 140), SensorMessage("camera", 101 * MS, 141 * MS, None)])
        frames = deliver(assembler, [message("lidar", 100, 50)])
        assert frames[0].messages["camera"].stamp_ns == 101 * MS

    def test_sensor_that_is_always_too_late_is_reported_late(self) -> None:
        assembler = make_assembler(max_wait_ms=20)
        frames = deliver(assembler, every("camera", 100, 0, 5000, 180) + every("lidar", 100, 0, 5000, 50))
        assert len(frames) == 50
        assert {frame.missing["camera"] for frame in frames[3:]} == {"late"}
        counts = assembler.counts()["camera"]
        assert counts.used == 0
        assert counts.dropped["late"] + counts.pending == counts.received

    def test_queue_without_an_anchor_stays_bounded_and_counts_overflow(self) -> None:
        assembler = make_assembler(["lidar", "radar"], anchors=("lidar",), queue_size=4)
        deliver(assembler, every("radar", 50, 0, 1000))
        counts = assembler.counts()["radar"]
        assert counts.pending == 4
        assert counts.dropped["overflow"] == 16

    def test_frames_nobody_collects_are_dropped_oldest_first(self) -> None:
        assembler = make_assembler(["lidar"], anchors=("lidar",), queue_size=4)
        for item in every("lidar", 100, 0, 1000):
            assembler.push(item)
        frames = assembler.poll(S)
        assert stamps_ms(frames) == [200.0 + 100 * k for k in range(8)]
        assert [frame.sequence for frame in frames] == list(range(2, 10))
        counts = assembler.counts()["lidar"]
        assert (counts.used, counts.dropped["overflow"], counts.pending) == (8, 2, 0)

    def test_too_many_waiting_frames_let_the_oldest_go_early(self) -> None:
        assembler = make_assembler(max_wait_ms=1000, anchor_timeout_ms=2000, queue_size=4)
        messages = [message("camera", -100), *every("lidar", 20, 0, 400)]
        frames = deliver(assembler, messages)
        assert stamps_ms(frames) == [20.0 * k for k in range(16)]
        assert assembler.drops()["overflow"] == 0

    def test_unknown_sensor_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"'sonar'.*expected one of lidar, camera"):
            make_assembler().push(message("sonar", 0))


class TestClock:
    def loop(self, assembler: FrameAssembler, *, arrival_loops: bool) -> list[list[AssembledFrame]]:
        """Play two seconds twice; the arrival clock loops too, or runs on."""
        recording = sorted(
            every("lidar", 100, 5000, 7000, 50) + every("camera", 100, 5000, 7000, 10),
            key=lambda m: m.arrival_ns,
        )
        frames = []
        for lap in range(2):
            shift = 0 if arrival_loops else 2100 * MS * lap
            lap_frames = []
            for item in recording:
                moved = SensorMessage(item.sensor, item.stamp_ns, item.arrival_ns + shift, None)
                assembler.push(moved)
                lap_frames += assembler.poll(moved.arrival_ns)
            frames.append(lap_frames)
        return frames

    @pytest.mark.parametrize("arrival_loops", [True, False])
    def test_looping_recording_starts_a_new_epoch_and_loses_no_frame(self, arrival_loops: bool) -> None:
        assembler = make_assembler()
        first, second = self.loop(assembler, arrival_loops=arrival_loops)
        assert stamps_ms(first) == stamps_ms(second) == [5000 + 100.0 * k for k in range(20)]
        assert [frame.sequence for frame in first + second] == list(range(40))
        assert assembler.epoch == assembler.num_clock_resets == 1
        assert all(len(frame.messages) == 2 for frame in first + second)

    def test_one_stray_old_message_is_dropped_and_the_epoch_goes_on(self) -> None:
        assembler = make_assembler()
        stray = SensorMessage("camera", 100 * MS, 3005 * MS, None)
        frames = deliver(
            assembler,
            [*every("lidar", 100, 2000, 5000, 50), *every("camera", 100, 2000, 5000, 10), stray],
        )
        assert len(frames) == 30
        assert assembler.epoch == 0
        assert assembler.drops() == {**dict.fromkeys(DROP_CAUSES, 0), "out_of_order": 1}

    def test_stamp_from_the_future_is_recovered_from(self) -> None:
        assembler = make_assembler()
        wild = SensorMessage("lidar", 3600 * S, 3005 * MS, None)
        frames = deliver(
            assembler, [*every("lidar", 100, 2000, 5000, 50), *every("camera", 100, 2000, 5000, 10), wild]
        )
        assert assembler.epoch == 1
        assert len(frames) >= 28
        assert stamps_ms(frames)[-1] == 4900

    def test_what_waits_at_a_clock_reset_is_counted(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("lidar", 5000), message("camera", 4960, 45)])
        assert sum(c.pending for c in assembler.counts().values()) == 2
        assembler.poll(1000 * MS)
        assert assembler.drops()["clock_reset"] == 2
        assert assembler.epoch == 1
        assert assembler.poll(9000 * MS) == []

    def test_small_step_back_of_the_arrival_clock_is_ignored(self) -> None:
        assembler = make_assembler()
        assembler.push(message("camera", 100))
        assembler.poll(150 * MS)
        assembler.push(message("lidar", 100, 0.5))
        assert len(assembler.poll(149 * MS)) == 1
        assert assembler.epoch == 0

    def test_reset_forgets_what_waits_and_counts_it(self) -> None:
        assembler = make_assembler()
        deliver(assembler, [message("lidar", 5000), message("camera", 4960, 45)])
        assembler.reset()
        assert assembler.epoch == 1
        assert assembler.drops()["reset"] == 2
        assert assembler.next_deadline_ns() is None
        frames = deliver(assembler, [message("camera", 10), message("lidar", 10, 5)])
        assert stamps_ms(frames) == [10]


class TestReports:
    def test_reports_describe_each_sensor_in_the_last_frame(self) -> None:
        assembler = make_assembler(["lidar", "camera", "radar"])
        before = assembler.reports()
        assert all(math.isnan(r.age_ms) and r.reason == "silent" and not r.valid for r in before)
        deliver(assembler, every("camera", 100, 0, 1000, 10) + every("lidar", 100, 5, 1000, 50))
        lidar, camera, radar = assembler.reports()
        assert (lidar.valid, lidar.reason, lidar.age_ms, lidar.used) == (True, "", 0.0, 10)
        assert camera.age_ms == pytest.approx(5.0, abs=1e-9)
        assert (camera.received, camera.used, camera.dropped) == (10, 10, 0)
        assert (radar.valid, radar.reason, radar.received) == (False, "silent", 0)
        assert math.isnan(radar.age_ms)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"sensors": ("lidar", "lidar"), "anchors": ("lidar",)}, "sensor lidar is listed twice"),
            ({"anchors": ("lidar", "lidar")}, "anchor lidar is listed twice"),
            ({"anchors": ("sonar",)}, "anchor sonar is no sensor; there are lidar, camera"),
            ({"anchors": ()}, "no anchor given"),
            ({"sensors": (SensorSync("lidar", 0, -1),), "anchors": ("lidar",)}, "tolerance is -1 ns"),
            ({"max_wait_ms": -1}, r"max wait is -1000000 ns, expected >= 0"),
            ({"anchor_timeout_ms": 0}, "anchor timeout is 0 ns, expected > 0"),
            ({"queue_size": 1}, "queue size is 1, expected at least 2"),
        ],
    )
    def test_wrong_settings_are_refused(self, changes: dict[str, object], error: str) -> None:
        with pytest.raises(ConfigError, match=error):
            make_assembler(**changes)  # type: ignore[arg-type]

    def test_refused_update_changes_nothing(self) -> None:
        assembler = make_assembler(max_wait_ms=60)
        deliver(assembler, [message("lidar", 100)])
        with pytest.raises(ConfigError, match="anchor timeout"):
            assembler.update(max_wait_ns=5 * MS, anchor_timeout_ns=-1)
        assert assembler.next_deadline_ns() == 160 * MS
