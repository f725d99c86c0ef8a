"""Everything between configure and cleanup: rig, bundle, engine, pipeline, and what feeds them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from e2e_perception.core.config import EngineConfig, StackConfig, TriggersConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.message_inputs import ego_state_from_odometry, route_from_path, stamp_ns
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.snippets import StackFacts
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engines import check_backend
from e2e_perception.nodes.report import NodeReport
from e2e_perception.runtime.calibration import RigCalibration
from e2e_perception.runtime.decode import ConvertImage
from e2e_perception.runtime.hot_swap import EngineSwap, LoadedEngine, check_fits, load_engine
from e2e_perception.runtime.pipeline import Pipeline
from e2e_perception.runtime.triggers import Triggers

CALIBRATION = "calibration"
ODOMETRY_UNUSABLE = "odometry_unusable"


def configured_rig(config: StackConfig) -> Rig:
    """The rig of the configuration, with its topics replaced as configured.

    Raises:
        E2EPerceptionError: If the rig or a replacement cannot be used.
    """
    return find_rig(config.node.rig).with_topic_rules(config.node.sensor_topics)


def configured_triggers(config: TriggersConfig, rig: Rig) -> Triggers | None:
    """Rules that say what to keep of a drive; None without any.

    Raises:
        ConfigError: If a rule does not fit the rig, or nothing could be kept here.
    """
    if not config.rules:
        return None
    if importlib.util.find_spec("rosbags") is None:
        raise ConfigError(
            "trigger rules need the Python package rosbags, which is not installed here; "
            "`pip install rosbags`, or leave triggers.rules empty"
        )
    return Triggers(config, [sensor.name for sensor in rig.sensors])


def image_converter() -> ConvertImage | None:
    """cv_bridge's conversion to BGR, for encodings that are not decoded here; None where it is absent."""
    if importlib.util.find_spec("cv_bridge") is None:
        return None
    from cv_bridge import CvBridge

    bridge = CvBridge()
    return lambda message: bridge.imgmsg_to_cv2(message, desired_encoding="bgr8")


class Stack:
    """The configured stack. Its `take_…` methods are called in one thread, that of the pipeline's first half.

    Attributes:
        pipeline: The stack without ROS.
        triggers: Rules that say what to keep of a drive; None without any.
        swap: A change of engine that is under way.
    """

    def __init__(
        self,
        config: StackConfig,
        report: NodeReport,
        on_engine: Callable[[], None],
        on_wait: Callable[[], None],
    ) -> None:
        """Load everything.

        Args:
            config: Which rig, bundle and engine, and all tunables.
            report: Gets problems with odometry, route and calibration.
            on_engine: Called from another thread when `swap` has an outcome.
            on_wait: Called twice a second while the engine is being loaded.
        Raises:
            E2EPerceptionError: If anything is missing or does not fit.
        """
        rig = configured_rig(config)
        self.triggers = configured_triggers(config.triggers, rig)
        bundle = load_bundle(config.engine.bundle)
        self._report = report
        self._bundle = bundle
        self._calibration = RigCalibration(rig)
        self._engine_config = config.engine
        self.swap = EngineSwap(on_engine, partial(load_engine, log=report.say))
        try:
            self._engine = self.swap.first(
                bundle, config.engine, after_s=config.supervisor.load_timeout_s, on_wait=on_wait
            )
        except BaseException:
            self.swap.close()
            raise
        try:
            self.pipeline = Pipeline(
                bundle.network, rig, self._engine, config, str(bundle), image_converter(), realtime=True
            )
        except BaseException:
            self.close()
            raise
        self._odometry_frame = ""

    @property
    def rig(self) -> Rig:
        """With all calibration taken so far."""
        return self.pipeline.rig

    def describe(self) -> str:
        """One line for the log."""
        sensors = ", ".join(sensor.name for sensor in self.rig.sensors)
        note = self.rig.footprint_note(self._bundle.rig)
        return f"bundle {self._bundle} with {self._engine.info}; rig {self.rig.name}: {sensors}" + (
            f"; {note}" if note else ""
        )

    def facts(self) -> StackFacts:
        """What runs, for the snippets that it keeps."""
        return StackFacts(bundle=str(self._bundle), backend=str(self._engine.info), rig=self.rig.name)

    def close(self) -> None:
        """Free the engine."""
        self.swap.close()
        self._engine.close()

    # --- another engine -------------------------------------------------------------------------------------

    @property
    def engine_config(self) -> EngineConfig:
        """What runs."""
        return self._engine_config

    def successor(self, config: EngineConfig) -> Bundle | None:
        """The bundle of an engine that is to take over; None if that engine runs already.

        Raises:
            E2EPerceptionError: If it may not take over, or if a change is under way.
        """
        if self.swap.wanted is not None:
            where = (
                "is loaded, and waits for the engine that runs to answer; if it does not, deactivate and "
                "configure the node"
                if self.swap.is_loaded
                else "is being loaded; one change of engine at a time, try again when health names it"
            )
            raise ConfigError(f"bundle {self.swap.wanted.bundle!r} on {self.swap.wanted.backend} {where}")
        if config == self._engine_config:
            return None
        if config.backend != "auto":
            check_backend(config.backend, config.precision, config.device)
        bundle = load_bundle(config.bundle)
        check_fits(bundle, self.pipeline.network)
        return bundle

    def begin_swap(self, bundle: Bundle, config: EngineConfig) -> None:
        """Load an engine beside the one that runs, warmed with the last frame if there is one."""
        last = self.pipeline.last_prepared
        self.swap.begin(bundle, config, None if last is None else last.inputs)

    def switch(self, loaded: LoadedEngine) -> None:
        """Let a loaded engine take over; in the thread of the pipeline's second half.

        Raises:
            ContractError: If it does not fit; the one before goes on.
        """
        before = self.pipeline.switch(
            loaded.engine,
            loaded.bundle.network,
            str(loaded.bundle),
            same_weights=loaded.bundle.digest == self._bundle.digest,
        )
        self._bundle, self._engine, self._engine_config = loaded.bundle, loaded.engine, loaded.config
        self.swap.retire(before)

    # --- messages -------------------------------------------------------------------------------------------

    def take_sensor(self, name: str, message: Any, arrival_ns: int) -> None:
        """A sensor's message, undecoded."""
        if name in self._calibration.refused_cameras:
            self._report.dropped(CALIBRATION)
            return
        self.pipeline.push(SensorMessage(name, stamp_ns(message), arrival_ns, message))

    def take_odometry(self, message: Any) -> None:
        """nav_msgs/Odometry."""
        state: EgoState | None = self._checked(
            "odometry", ego_state_from_odometry, message, self.rig.base_frame
        )
        if state is None:
            self._report.dropped(ODOMETRY_UNUSABLE)
            return
        self._odometry_frame = message.header.frame_id.lstrip("/")
        self.pipeline.push_odometry(state)

    def take_route(self, message: Any) -> None:
        """nav_msgs/Path in the odometry frame, or in the base frame at its stamp; an empty one: no route."""
        self._checked("route", self._set_route, message)

    def take_camera_info(self, name: str, message: Any) -> None:
        """sensor_msgs/CameraInfo of a camera."""
        self._adopt(self._calibration.take_camera_info(name, message))

    def take_transforms(self, message: Any) -> None:
        """tf2_msgs/TFMessage from /tf_static."""
        self._adopt(self._calibration.take_transforms(message))

    def _set_route(self, message: Any) -> bool:
        route, frame = route_from_path(message), message.header.frame_id.lstrip("/")
        if route is not None and frame == self.rig.base_frame:
            here = self.pipeline.ego.at(stamp_ns(message))
            if here is None:
                raise InputError(
                    f"route ignored: it is given in {frame!r}, and odometry does not cover its stamp; give "
                    "it in the odometry frame, or stamp it with the present time"
                )
            route = route.transformed(here.odom_from_base.planar_part())
        elif route is not None and frame != (self._odometry_frame or frame):
            raise InputError(
                f"route ignored: it is given in frame {frame!r}, expected the odometry's "
                f"{self._odometry_frame!r} or {self.rig.base_frame!r}"
            )
        self.pipeline.set_route(route)
        return True

    def _adopt(self, changed: bool) -> None:
        for subject in (*(camera.name for camera in self.rig.cameras), "tf"):
            sentence = self._calibration.problems.get(subject)
            if sentence is None:
                self._report.solved(f"calibration {subject}")
            else:
                self._report.problem(f"calibration {subject}", sentence)
        if changed:
            self.pipeline.set_rig(self._calibration.rig)

    def _checked(self, subject: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value, or None and a problem on health if the message cannot be used."""
        try:
            value = function(*arguments)
        except InputError as error:
            self._report.problem(subject, str(error))
            return None
        self._report.solved(subject)
        return value
