"""The first half of the stack: messages, odometry and route in, prepared frames out.

    messages -> FrameAssembler -> Preprocessor -> inputs of the network

The robot's `Pipeline` begins with it, and so do the clips that training gets of a recording, so that training
sees what the robot saw.
"""

from __future__ import annotations

from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoMotionLimits
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import AssembledFrame
from e2e_perception.core.trajectories import Route
from e2e_perception.runtime.assembler import FrameAssembler, SensorSync
from e2e_perception.runtime.decode import ConvertImage
from e2e_perception.runtime.preprocess import PreparedFrame, Preprocessor


class FrontEnd:
    """Brings together what belongs to one instant and turns it into tensors.

    Attributes:
        ego: Odometry so far.
        assembler: What waits for a frame.
        rig: The sensors, as last calibrated.
        route: To follow, odometry frame; None: none.
        config: All tunables; `update` replaces them.
    """

    def __init__(
        self, network: NetworkConfig, rig: Rig, config: StackConfig, convert_image: ConvertImage | None = None
    ) -> None:
        """Prepare for a rig.

        Args:
            network: Sizes and slots.
            rig: The robot's sensors.
            config: All tunables.
            convert_image: From a ROS image message to RGB; the nodes pass cv_bridge's.
        Raises:
            RigError: If the rig has a sensor that the network does not know.
            ConfigError: If the configured anchors are not in the rig.
        """
        self.network, self.config = network, config
        self._convert_image = convert_image
        limits = config.ego_motion
        self.ego = EgoMotionBuffer(
            EgoMotionLimits(
                max_gap_ns=nanoseconds(limits.max_gap_ms),
                max_extrapolation_ns=nanoseconds(limits.max_extrapolation_ms),
                max_speed=limits.max_speed,
            )
        )
        self.assembler = FrameAssembler(
            [SensorSync(s.name, nanoseconds(s.offset_ms), nanoseconds(s.tolerance_ms)) for s in rig.sensors],
            anchors=config.sync.anchors or [s.name for s in (*rig.lidars, *rig.cameras)],
            max_wait_ns=nanoseconds(config.sync.max_wait_ms),
            anchor_timeout_ns=nanoseconds(config.sync.anchor_timeout_ms),
            queue_size=config.sync.queue_size,
        )
        self.route: Route | None = None
        self._epoch = self.assembler.epoch
        self.set_rig(rig)

    def set_rig(self, rig: Rig) -> None:
        """Take a calibration of the same sensors, from CameraInfo or TF for example.

        Raises:
            ConfigError: If the sensors are others than at the start.
        """
        names, expected = [s.name for s in rig.sensors], list(self.assembler.counts())
        if names != expected:
            raise ConfigError(f"rig has sensors {', '.join(names)}; expected {', '.join(expected)} as before")
        self.rig = rig
        self._preprocessor = Preprocessor(self.network, rig, self.config.preprocess, self._convert_image)

    def update(self, config: StackConfig) -> None:
        """Take new values of the live parameters; they hold from the next frame on."""
        self.assembler.update(
            max_wait_ns=nanoseconds(config.sync.max_wait_ms),
            anchor_timeout_ns=nanoseconds(config.sync.anchor_timeout_ms),
        )
        self.config = config
        self._preprocessor.config = config.preprocess

    def reset(self) -> None:
        """Forget everything but counts, calibration and route."""
        self.assembler.reset()
        self.ego.clear()
        self._epoch = self.assembler.epoch

    def poll(self, now_ns: int) -> tuple[list[AssembledFrame], bool]:
        """Frames that are due.

        Args:
            now_ns: Present time on the clock of the stamps [ns].
        Returns:
            Frames in the order of their stamps, and whether the clock or the recording started anew before
            them, so that nothing remembered is of use any more.
        """
        frames = self.assembler.poll(now_ns)
        anew = self.assembler.epoch != self._epoch
        if anew:
            self._epoch = self.assembler.epoch
            self.ego.rewind(now_ns)
        return frames, anew

    def prepare(self, frame: AssembledFrame) -> PreparedFrame:
        """Messages to tensors; everything but the memory."""
        planning = self.config.planning
        return self._preprocessor.prepare(
            frame,
            self.ego,
            self.route,
            planning.speed_limit,
            assume_straight_route=planning.assume_straight_route,
        )


def nanoseconds(milliseconds: float) -> int:
    """Whole nanoseconds of milliseconds."""
    return round(milliseconds * 1e6)
