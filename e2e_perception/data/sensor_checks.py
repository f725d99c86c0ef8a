"""What a recording's data say of its sensors: clocks, where cameras look, whether labels lie on returns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.data.box_returns import BoxReturns
from e2e_perception.data.calibration_sanity import CalibrationProbe
from e2e_perception.data.clock_offsets import ClockProbe

NOTABLE_OFFSET_S = 0.03  # beyond twice its standard error


class SensorChecks:
    """Takes the clips of one recording in order of time."""

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network
        self.clocks = ClockProbe(network)
        self.calibration = CalibrationProbe(network)
        self.boxes = BoxReturns()

    @staticmethod
    def of(facts: Mapping[str, Any]) -> SensorChecks | None:
        """For a shard; None where it does not say for which size of network its clips were made."""
        recipe = facts.get("recipe")
        size = recipe.get("size") if isinstance(recipe, Mapping) else None
        return SensorChecks(SIZES[size]) if size in SIZES else None

    def add(self, clip: Clip) -> None:
        """Take a clip in."""
        self.clocks.add(clip)
        self.calibration.add(clip)
        self.boxes.add(clip, self.network.grid)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Checks and messages."""
        for name, clock in self.clocks.offsets().items():
            if clock.offset_s is not None and abs(clock.offset_s) > NOTABLE_OFFSET_S + 2.0 * clock.std_s:
                late = "later than" if clock.offset_s > 0.0 else "ahead of"
                yield (
                    "clock_offset",
                    f"{name}: its stamps are {1e3 * abs(clock.offset_s):.0f} ± {1e3 * clock.std_s:.0f} ms "
                    f"{late} what it shows, going by how odometry says the robot turned",
                )
        for name, camera in self.calibration.found().items():
            if camera.yaw_deg or camera.pitch_deg:
                yield (
                    "calibration",
                    f"{name}: edges of pictures and lidar fit {camera.gain - 1.0:.0%} better with the camera "
                    f"turned by {camera.yaw_deg:+g}° (to the left) and {camera.pitch_deg:+g}° (down)",
                )
        yield from self.boxes.told()

    def figures(self) -> dict[str, dict[str, Any]]:
        """By sensor, also where nothing can be said, and then why; `labels` are no sensor."""
        said: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for name, clock in self.clocks.offsets().items():
            if clock.offset_s is None:
                said[name]["clock"] = f"not known: {clock.reason}"
            else:
                said[name]["clock_offset_ms"] = round(1e3 * clock.offset_s, 1)
                said[name]["clock_offset_std_ms"] = round(1e3 * clock.std_s, 1)
        for name, camera in self.calibration.found().items():
            said[name]["turned_deg"] = [camera.yaw_deg, camera.pitch_deg]
            said[name]["calibration_frames"] = camera.frames
        if self.boxes.boxes:
            said["labels"]["near_and_seen"] = self.boxes.boxes
            said["labels"]["without_returns"] = round(self.boxes.empty_share, 4)
        return dict(said)
