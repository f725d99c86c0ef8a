"""A rig that measures as time goes on: who measures when, what it sees, when its message arrives.

Each sensor and each of its measurements draws from a generator of its own. What a rig measures therefore does
not depend on how long the steps are that a caller takes, nor on which other sensors there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from e2e_perception.core.errors import InputError
from e2e_perception.core.rig import Camera, Lidar, Radar, Rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage
from e2e_perception.simulation.camera import render_camera
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.impairment import MILLISECOND, Delivery, Impairment, sensor_key
from e2e_perception.simulation.lidar import simulate_lidar
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.scene import Snapshot

Sample = ImageSample | PointsSample
SnapshotAt = Callable[[int], Snapshot]
Recorded = Callable[[str, int], tuple[int, Sample] | None]

# What a generator is for, next to the seed, the sensor and the number of the measurement.
_PHASE, _DELIVERY, _NOISE, _EFFECTS = 11, 12, 13, 14


def simulate_sensor(
    snapshot: Snapshot, sensor: Camera | Lidar | Radar, rng: np.random.Generator
) -> ImageSample | PointsSample:
    """One measurement of one sensor."""
    if isinstance(sensor, Camera):
        return render_camera(snapshot, sensor, rng)
    if isinstance(sensor, Lidar):
        return simulate_lidar(snapshot, sensor, rng)
    return simulate_radar(snapshot, sensor, rng)


@dataclass
class _Clock:
    """When one sensor measures: at `first_ns` and every `period_ns` from then on; `count` are done."""

    sensor: Camera | Lidar | Radar
    first_ns: int
    period_ns: int
    count: int = 0
    arrived_ns: int = 0  # the latest of its messages
    last: Sample | None = None  # what it measured last; kept for sensors that may freeze

    @property
    def next_ns(self) -> int:
        return self.first_ns + self.count * self.period_ns


class SensorRig:
    """Measures everything that is due, step by step.

    Attributes:
        rig: As the robot believes it to be; its cameras' sizes are those of the pictures.
        start_ns, end_ns: Measurements are taken from the first to the last [ns], both included.
    """

    def __init__(
        self,
        rig: Rig,
        start_ns: int,
        end_ns: int,
        seed: int,
        degradation: DegradationSchedule | None = None,
        *,
        start_yaw: float = 0.0,
    ) -> None:
        """Set all clocks.

        Args:
            rig: The sensors. Those that run at the first lidar's (else camera's) rate keep `offset_ms` to it;
                the others start at a random phase.
            start_ns, end_ns: When to measure; a schedule's times count from the start [ns].
            seed: Of noise, jitter, phases and effects.
            degradation: What goes wrong; None: nothing.
            start_yaw: The robot's heading at the start [rad, odom], which the sun of `glare` refers to.
        Raises:
            ConfigError: If the schedule is not for this rig.
            InputError: If the end is before the start.
        """
        if end_ns < start_ns:
            raise InputError(
                f"sensors would measure from {start_ns} ns until {end_ns} ns; the end is earlier"
            )
        self.rig = rig
        self.start_ns, self.end_ns = start_ns, end_ns
        self._seed = seed
        self._impairment = (
            Impairment(degradation, rig, start_ns, seed, start_yaw) if degradation is not None else None
        )
        leader = (*rig.lidars, *rig.cameras)[0]
        self._clocks = []
        for sensor in rig.sensors:
            period_ns = round(1e9 / sensor.rate_hz)
            phase_ns = round(sensor.offset_ms * MILLISECOND)
            if sensor.rate_hz != leader.rate_hz:
                rng = np.random.default_rng((seed, _PHASE, sensor_key(sensor.name)))
                phase_ns += int(rng.integers(period_ns))
            self._clocks.append(_Clock(sensor, start_ns + phase_ns % period_ns, period_ns))

    def due(self, until_ns: int) -> list[tuple[int, str]]:
        """What has yet to be measured up to an instant: stamps [ns] and sensors, in order of time.

        The world has to be known at these instants. Measurements that will be lost are among them.
        """
        return [(stamp_ns, clock.sensor.name) for stamp_ns, _, clock in self._pending(until_ns)]

    def _pending(self, until_ns: int) -> list[tuple[int, int, _Clock]]:
        """Stamp [ns], number among the sensor's measurements, clock."""
        until_ns = min(until_ns, self.end_ns)
        pending = []
        for row, clock in enumerate(self._clocks):
            number, stamp_ns = clock.count, clock.next_ns
            while stamp_ns <= until_ns:
                pending.append((stamp_ns, row, number))
                number, stamp_ns = number + 1, stamp_ns + clock.period_ns
        return [(stamp_ns, number, self._clocks[row]) for stamp_ns, row, number in sorted(pending)]

    def measure(
        self, until_ns: int, snapshot_at: SnapshotAt, recorded: Recorded | None = None
    ) -> list[SensorMessage]:
        """Take all measurements that are due.

        Args:
            until_ns: The world is known up to here [ns].
            snapshot_at: The world at a stamp [ns]; asked once per stamp, in order of time.
            recorded: A real measurement by sensor name and stamp [ns], with its own stamp; None where there
                is none, and the sensor is modelled. A schedule's weather does not change what was recorded.
        Returns:
            Messages in order of measurement, to be sorted by `arrival_ns`: they may arrive at any time later,
            a sensor's own in order.
        """
        messages = []
        snapshots: dict[int, Snapshot] = {}

        def world(stamp_ns: int) -> Snapshot:
            if stamp_ns not in snapshots:
                snapshots.clear()
                snapshot = snapshot_at(stamp_ns)
                snapshots[stamp_ns] = (
                    snapshot if self._impairment is None else self._impairment.world(snapshot)
                )
            return snapshots[stamp_ns]

        for stamp_ns, number, clock in self._pending(until_ns):
            message = self._message(clock, stamp_ns, number, world, recorded)
            clock.count = number + 1
            if message is not None:
                messages.append(message)
        return messages

    def _message(
        self, clock: _Clock, stamp_ns: int, number: int, world: SnapshotAt, recorded: Recorded | None
    ) -> SensorMessage | None:
        sensor = clock.sensor
        key = (sensor_key(sensor.name), number)
        rng = np.random.default_rng((self._seed, _DELIVERY, *key))
        latency_ms = max(0.0, rng.normal(sensor.latency_ms, sensor.jitter_ms))
        impairment = self._impairment
        delivery = Delivery(False, 0, 0)
        if impairment is not None:
            delivery = impairment.delivery(sensor, stamp_ns, rng)
        if delivery.lost:
            return None
        frozen = impairment is not None and impairment.frozen_since_ns(sensor, stamp_ns) is not None
        measured_ns, payload = stamp_ns, clock.last
        if not frozen or payload is None:
            measured_ns, payload = self._payload(sensor, stamp_ns, key, world, recorded)
            if impairment is not None:
                clock.last = payload
        arrival_ns = measured_ns + round(latency_ms * MILLISECOND) + delivery.delay_ns
        # One sensor's messages do not overtake each other.
        clock.arrived_ns = max(clock.arrived_ns + 1, arrival_ns)
        return SensorMessage(sensor.name, measured_ns + delivery.stamp_shift_ns, clock.arrived_ns, payload)

    def _payload(
        self,
        sensor: Camera | Lidar | Radar,
        stamp_ns: int,
        key: tuple[int, int],
        world: SnapshotAt,
        recorded: Recorded | None,
    ) -> tuple[int, Sample]:
        """Stamp [ns] and measurement."""
        impairment = self._impairment
        real = recorded(sensor.name, stamp_ns) if recorded is not None else None
        payload: Sample
        if real is not None:
            measured_ns, payload = real
            if impairment is not None:
                payload = impairment.remounted(sensor, stamp_ns, payload)
        else:
            measured_ns = stamp_ns
            mounted = sensor if impairment is None else impairment.mounted(sensor, stamp_ns)
            rng = np.random.default_rng((self._seed, _NOISE, *key))
            payload = simulate_sensor(world(stamp_ns), mounted, rng)
        if impairment is not None:
            rng = np.random.default_rng((self._seed, _EFFECTS, *key))
            payload = impairment.spoiled(sensor, stamp_ns, payload, rng)
        return measured_ns, payload
