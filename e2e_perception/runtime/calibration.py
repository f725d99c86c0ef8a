"""The rig as the robot itself describes it: intrinsics from CameraInfo, poses from /tf_static."""

from __future__ import annotations

from typing import Any

from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.core.frames import SE3
from e2e_perception.core.message_inputs import rig_with_transforms, transforms_from_tf
from e2e_perception.core.rig import Rig
from e2e_perception.runtime.preprocess import check_camera_info

MAX_FRAMES = 4096  # static frames remembered; a robot has tens


class RigCalibration:
    """Corrects a rig by what the robot publishes, and refuses what cannot be true.

    A camera whose CameraInfo contradicts the rig is not to be used until a fitting one comes: nobody knows
    then which of the two is wrong.

    Attributes:
        rig: With all corrections so far.
        problems: Why something was refused: by camera name, or `tf`.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.problems: dict[str, str] = {}
        self._declared = rig
        self._transforms: dict[str, tuple[str, SE3]] = {}

    @property
    def refused_cameras(self) -> frozenset[str]:
        """Cameras whose pictures are not to be used."""
        return frozenset(self.problems) - {"tf"}

    def take_camera_info(self, camera_name: str, message: Any) -> bool:
        """Take one CameraInfo; returns whether `rig` changed.

        It is compared with the rig file, not with an earlier message: many small steps must not add up.
        """
        camera = next(c for c in self._declared.cameras if c.name == camera_name)
        try:
            checked = check_camera_info(camera, message)
        except E2EPerceptionError as error:
            self.problems[camera_name] = str(error)
            return False
        self.problems.pop(camera_name, None)
        present = self.rig.sensor(camera_name)
        changed = checked.model_copy(update={"mount": present.mount})
        if changed == present:
            return False
        self.rig = self.rig.with_sensors({camera_name: changed})
        return True

    def take_transforms(self, message: Any) -> bool:
        """Take one message of /tf_static; returns whether `rig` changed."""
        try:
            transforms = {**self._transforms, **transforms_from_tf(message)}
            corrected = rig_with_transforms(self.rig, transforms)
        except E2EPerceptionError as error:
            self.problems["tf"] = str(error)
            return False
        if len(transforms) > MAX_FRAMES:
            self.problems["tf"] = f"/tf_static has more than {MAX_FRAMES} frames; the rest is ignored"
            return False
        self.problems.pop("tf", None)
        self._transforms = transforms
        changed, self.rig = corrected != self.rig, corrected
        return changed
