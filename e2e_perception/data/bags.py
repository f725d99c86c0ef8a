"""rosbag2 recordings, read and written through `rosbags`, without ROS.

Reading knows MCAP and SQLite3 of every rosbag2 version; writing makes MCAP of version 9 (Jazzy, Kilted),
which `ros2 bag` plays. The time of a message in a bag is when it *arrived*; its header says when it was
measured.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import DamagedBagError, InputError
from e2e_perception.core.messages import TRACKS_TYPE, tracks_message
from e2e_perception.core.resources import message_dir
from e2e_perception.core.rig import Camera, Rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage
from e2e_perception.core.sensor_messages import (
    CAMERA_INFO_TYPE,
    COMPRESSED_IMAGE_TYPE,
    IMAGE_TYPE,
    ODOM_FRAME,
    ODOMETRY_TYPE,
    PATH_TYPE,
    POINTS_TYPE,
    TF_TYPE,
    camera_info_message,
    compressed_image_message,
    odometry_message,
    points_message,
    route_message,
    transform_message,
)
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Route
from e2e_perception.data.message_factory import RosbagsFactory
from e2e_perception.data.unpacking import check_packed_files, from_lz4, from_zstd

SENSOR_TYPES = {
    "camera": (COMPRESSED_IMAGE_TYPE, IMAGE_TYPE),
    "lidar": (POINTS_TYPE,),
    "radar": (POINTS_TYPE,),
}
LABELS_TOPIC = "/labels"
# Both send point clouds; these words in a topic tell them apart.
RADAR_WORDS = ("radar",)
LIDAR_WORDS = ("lidar", "laser", "velodyne", "ouster", "hesai")

# rosbags unpacks a chunk whatever comes of it, and compares its size after that; these stop at a bound.
DECOMPRESSORS.update(zstd=lambda data, _: from_zstd(data), lz4=lambda data, _: from_lz4(data))


def project_typestore() -> Typestore:
    """The messages of ROS 2 Jazzy and of this package, for rosbags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted(message_dir().glob("*.msg")):
        name = f"e2e_perception/msg/{path.stem}"
        store.register(get_types_from_msg(path.read_text(encoding="utf-8"), name))
    return store


# ------------------------------------------------------------------ reading


@dataclass(frozen=True)
class BagMessage:
    """One message of a bag.

    Attributes:
        topic: Where it was published.
        type_name: For example `sensor_msgs/msg/PointCloud2`.
        stamp_ns: Time of arrival at the recorder [ns].
        message: Deserialised by rosbags; fields as in the definition, arrays are numpy's.
    """

    topic: str
    type_name: str
    stamp_ns: int
    message: Any


class BagSource:
    """A rosbag2 directory, or a single `.mcap` or `.db3` file, opened for reading.

    Attributes:
        path: As given.
        types: Type of each topic that holds messages.
        counts: Number of messages of each of them.
        start_ns, end_ns: Arrival of the first and of the last message [ns].
    """

    def __init__(self, path: str | Path, topics: Collection[str] | None = None) -> None:
        """Open a bag.

        Args:
            path: Directory or file.
            topics: Read only these; None: all.
        Raises:
            InputError: If there is no bag, it is empty, damaged or cut off, unpacks to more than a recording
                would, or lacks a topic.
        """
        self.path = Path(path)
        storage = _storage_path(self.path)
        if storage.is_dir():
            check_packed_files(storage)
        try:
            self._reader = AnyReader([storage], default_typestore=project_typestore())
            self._reader.open()
        except Exception as error:  # whatever the library trips over, the bag is what must be mended
            raise DamagedBagError(_why_unreadable(storage, error)) from error
        self._packed_messages = _take_over_unpacking(self._reader)
        held = [c for c in self._reader.connections if c.msgcount > 0]
        self.counts: dict[str, int] = {}
        self.types: dict[str, str] = {}
        for connection in held:
            self.counts[connection.topic] = self.counts.get(connection.topic, 0) + connection.msgcount
            self.types.setdefault(connection.topic, connection.msgtype)
        if not held:
            self.close()
            raise InputError(
                f"bag {self.path} holds no messages; was the recorder stopped before anything came?"
            )
        self.start_ns = int(self._reader.start_time)
        self.end_ns = int(self._reader.end_time) - 1
        self._connections = held
        if topics is not None:
            try:
                self.require(dict.fromkeys(topics))
            except InputError:
                self.close()
                raise
            self._connections = [c for c in held if c.topic in set(topics)]

    def __enter__(self) -> BagSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._reader.stack is not None:
            self._reader.close()

    @property
    def num_messages(self) -> int:
        """Messages that `messages` yields without bounds."""
        return sum(c.msgcount for c in self._connections)

    def require(self, expected: Mapping[str, str | Collection[str] | None]) -> None:
        """Check that topics are there with the right types.

        Args:
            expected: For each topic its type, several that would do, or None for any.
        Raises:
            InputError: Naming what is missing or different, and what there is.
        """
        missing = [topic for topic in expected if topic not in self.types]
        if missing:
            present = ", ".join(f"{topic} ({name})" for topic, name in sorted(self.types.items()))
            raise InputError(
                f"bag {self.path} has no topic {', '.join(missing)}; it has {present}. "
                "Correct the topics in the rig file"
            )
        for topic, wanted in expected.items():
            names = (wanted,) if isinstance(wanted, str) else wanted
            if names is not None and self.types[topic] not in names:
                raise InputError(
                    f"topic {topic} of bag {self.path} is of type {self.types[topic]}, expected "
                    f"{' or '.join(names)}"
                )

    def raw_messages(
        self, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """Messages in order of arrival as they are stored: topic, type, arrival [ns], CDR bytes.

        Args:
            start_ns: From this arrival on [ns].
            stop_ns: Before this arrival [ns].
        Raises:
            InputError: Where the bag is damaged; the message says how far it could be read.
        """
        reader, count, last_ns = self._reader, 0, self.start_ns
        stored = reader.messages(self._connections, start=start_ns, stop=stop_ns)
        while True:
            try:
                found = next(stored, None)
                if found is None:
                    return
                connection, stamp_ns, raw = found
                raw = from_zstd(raw) if self._packed_messages else raw
            except Exception as error:  # whatever the library trips over, the bag is what must be mended
                raise self._damaged(count, last_ns, error) from error
            count, last_ns = count + 1, stamp_ns
            yield connection.topic, connection.msgtype, stamp_ns, bytes(raw)

    def messages(self, start_ns: int | None = None, stop_ns: int | None = None) -> Iterator[BagMessage]:
        """Messages in order of arrival.

        Args:
            start_ns: From this arrival on [ns].
            stop_ns: Before this arrival [ns].
        Yields:
            Messages; only one chunk of the bag is in memory at a time.
        Raises:
            InputError: Where the bag is damaged; the message says how far it could be read.
        """
        last_ns = self.start_ns
        for count, (topic, type_name, stamp_ns, raw) in enumerate(self.raw_messages(start_ns, stop_ns)):
            try:
                message = self._reader.deserialize(raw, type_name)
            except Exception as error:  # as above
                raise self._damaged(count, last_ns, error) from error
            last_ns = stamp_ns
            yield BagMessage(topic, type_name, stamp_ns, message)

    def _damaged(self, count: int, last_ns: int, error: Exception) -> DamagedBagError:
        seconds = (last_ns - self.start_ns) * 1e-9
        return DamagedBagError(
            f"bag {self.path} is damaged after {count} messages ({seconds:.1f} s): {error}"
        )

    __iter__ = messages


def _take_over_unpacking(reader: AnyReader) -> bool:
    """Whether each message is compressed by itself: rosbags then hands them out as they are stored."""
    (bag,) = reader.readers
    if not isinstance(bag, Reader) or bag.compression_mode != "message":
        return False
    bag.storage.metadata = bag.storage.metadata._replace(compression_mode=None)
    return True


def _storage_path(path: Path) -> Path:
    """The directory with metadata.yaml, or the file itself where a recorder died before writing that."""
    if not path.exists():
        raise InputError(f"no bag at {path}; give a rosbag2 directory, or an .mcap or .db3 file")
    if path.is_file():
        if path.suffix not in (".mcap", ".db3"):
            raise InputError(f"{path} is no rosbag2 file; expected a directory, .mcap or .db3")
        return path
    if (path / "metadata.yaml").is_file():
        return path
    files = [file for file in storage_files(path) if file.suffix in (".mcap", ".db3")]
    if len(files) == 1:
        return files[0]
    kind = DamagedBagError if files else InputError  # of a split recording the files are all there
    found = ", ".join(file.name for file in files) or "no .mcap or .db3 file"
    raise kind(
        f"{path} is no rosbag2 directory: it has no metadata.yaml and {found}; `ros2 bag reindex` "
        "writes one where a recorder was stopped too early"
    )


def storage_files(path: str | Path) -> list[Path]:
    """The files that hold a bag's messages, in order of their names; metadata.yaml need not be there.

    Raises:
        InputError: If there is no bag.
    """
    path = Path(path)
    if not path.is_dir():
        return [_storage_path(path)]
    endings = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
    return sorted(file for file in path.iterdir() if file.name.endswith(endings))


def _why_unreadable(path: Path, error: Exception) -> str:
    files = sorted(path.glob("*.mcap")) if path.is_dir() else [path]
    for file in files:
        if file.suffix != ".mcap":
            continue
        size = file.stat().st_size
        if size == 0:
            return f"bag file {file} is empty (0 bytes); record or copy it again"
        extent = _complete_extent(file)
        if extent is None:
            return f"{file} is no MCAP file: it does not begin with MCAP's magic bytes"
        if extent.is_whole:
            continue
        reached = "no message" if extent.last_ns is None else f"messages up to {extent.seconds:.1f} s"
        return (
            f"bag file {file} is cut off: {extent.complete_bytes} of its {size} bytes hold complete records, "
            f"with {reached}. Copy it again, or keep what is whole with `mcap recover`"
        )
    return f"bag {path} cannot be read: {error}"


@dataclass
class _Extent:
    """How far an MCAP file is whole."""

    complete_bytes: int
    first_ns: int | None
    last_ns: int | None
    is_whole: bool

    @property
    def seconds(self) -> float:
        return 0.0 if self.first_ns is None or self.last_ns is None else (self.last_ns - self.first_ns) * 1e-9


MCAP_MAGIC = b"\x89MCAP0\r\n"
_MESSAGE, _CHUNK, _FOOTER = 0x05, 0x06, 0x02


def _complete_extent(path: Path) -> _Extent | None:
    """Walk over the records of an MCAP file (https://mcap.dev/spec); None if it is none."""
    size = path.stat().st_size
    first_ns: int | None = None
    last_ns: int | None = None
    with path.open("rb") as file:
        if file.read(8) != MCAP_MAGIC:
            return None
        position = 8
        while position + 9 <= size:
            file.seek(position)
            opcode, length = struct.unpack("<BQ", file.read(9))
            end = position + 9 + length
            if end > size:
                break
            if opcode == _CHUNK and length >= 16:
                begins, ends = struct.unpack("<QQ", file.read(16))
                first_ns = begins if first_ns is None else min(first_ns, begins)
                last_ns = ends if last_ns is None else max(last_ns, ends)
            elif opcode == _MESSAGE and length >= 22:
                _, _, logged = struct.unpack("<HIQ", file.read(14))
                first_ns = logged if first_ns is None else min(first_ns, logged)
                last_ns = logged if last_ns is None else max(last_ns, logged)
            position = end
            if opcode == _FOOTER:
                file.seek(end)
                return _Extent(end, first_ns, last_ns, file.read(8) == MCAP_MAGIC)
    return _Extent(position, first_ns, last_ns, False)


# ------------------------------------------------------------------ a rig and a bag


@dataclass(frozen=True)
class TopicMatch:
    """A rig brought together with a bag's topics.

    Attributes:
        rig: The rig with the topics of the bag.
        guessed: Topics that differ from the rig file's, by sensor name, `odom` or `route`.
        missing: Sensors, or `odom` or `route`, for which the bag has nothing.
    """

    rig: Rig
    guessed: dict[str, str]
    missing: tuple[str, ...]


def match_topics(types: Mapping[str, str], rig: Rig) -> TopicMatch:
    """Find a bag's topic for each sensor.

    That is the rig's own; else the one of the right type that has the sensor's name in it; else the only one
    of that type that is left, for the only sensor of its kind that is left.

    Args:
        types: Type of each topic, as `BagSource.types`.
        rig: Sensors to look for.
    Returns:
        What was found; nothing is matched by the order of topics.
    Raises:
        InputError: If no camera and no lidar can be matched, or a topic of the rig has another type.
    """
    for sensor in rig.sensors:
        found = types.get(sensor.topic)
        if found is not None and found not in SENSOR_TYPES[sensor.kind]:
            raise InputError(
                f"topic {sensor.topic} of {sensor.kind} {sensor.name!r} is of type {found}, expected "
                f"{' or '.join(SENSOR_TYPES[sensor.kind])}"
            )
    matched = {s.name: s.topic for s in rig.sensors if s.topic in types}
    for kind, type_names in SENSOR_TYPES.items():
        for by_name in (True, False):
            wanted = [s.name for s in rig.sensors if s.kind == kind and s.name not in matched]
            free = [t for t, name in types.items() if name in type_names and t not in matched.values()]
            if kind == "lidar":
                free = [t for t in free if not _names(t, RADAR_WORDS)]
            elif kind == "radar":
                free = [t for t in free if _names(t, RADAR_WORDS) or not _names(t, LIDAR_WORDS)]
            # Long names first: `front_left` must not be taken for `front`.
            for name in sorted(wanted, key=len, reverse=True):
                fitting = [t for t in free if _names(t, (name,))] if by_name else free
                if len(fitting) == 1 and (by_name or len(wanted) == 1):
                    matched[name] = fitting[0]
                    free = [t for t in free if t != fitting[0]]
    if not any(s.name in matched for s in (*rig.cameras, *rig.lidars)):
        present = ", ".join(f"{topic} ({name})" for topic, name in sorted(types.items()))
        raise InputError(
            f"no topic of the bag fits a camera or lidar of rig {rig.name!r}; the bag has {present}. "
            "Name the topics in a rig file"
        )
    chosen = {name: topic for name, topic in matched.items() if topic != rig.sensor(name).topic}
    missing = [s.name for s in rig.sensors if s.name not in matched]
    update: dict[str, Any] = {}
    for name, own, type_name in (
        ("odom", rig.odom_topic, ODOMETRY_TYPE),
        ("route", rig.route_topic, PATH_TYPE),
    ):
        if types.get(own) == type_name:
            continue
        candidates = [topic for topic, found in types.items() if found == type_name]
        if name == "route":  # any other path may be a recorded plan, which must not become the route
            candidates = [topic for topic in candidates if _names(topic, ("route",))]
        if len(candidates) == 1:
            chosen[name] = update[f"{name}_topic"] = candidates[0]
        else:
            missing.append(name)
    topics = {name: topic for name, topic in chosen.items() if name not in ("odom", "route")}
    found_rig = rig.with_topics(topics).model_copy(update=update)
    cameras = {camera.name: _with_camera_info(camera, types) for camera in found_rig.cameras}
    return TopicMatch(found_rig.with_sensors({**cameras}), chosen, tuple(missing))


def _with_camera_info(camera: Camera, types: Mapping[str, str]) -> Camera:
    """The camera with the CameraInfo that stands beside or above its pictures, if its own is not there."""
    own = camera.camera_info_topic
    if own is None or own in types:
        return camera
    infos = [topic for topic, name in types.items() if name == CAMERA_INFO_TYPE]
    beside = [topic for topic in infos if camera.topic.startswith(topic.rpartition("/")[0] + "/")]
    return camera.model_copy(update={"camera_info_topic": max(beside, key=len, default=own)})


def _names(topic: str, words: Collection[str]) -> bool:
    flat = topic.lower().replace("/", "_")
    return any(word in flat for word in words)


# ------------------------------------------------------------------ writing

_NO_TIME = QosTime(0, 0)
# Kept for subscribers who come late, as /tf_static is published.
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _NO_TIME, _NO_TIME,
    QosLiveliness.AUTOMATIC, _NO_TIME, False,
)  # fmt: skip


class BagWriter:
    """Writes an MCAP rosbag2; use as a context manager. An error on the way leaves no metadata.yaml behind.

    Attributes:
        make: Builds messages by type name, see `core.messages`.
    """

    def __init__(self, path: str | Path, store: Typestore | None = None) -> None:
        """Create the bag's directory.

        Args:
            path: Directory to create.
            store: A `project_typestore`, for those who write many bags; None: one of its own.
        Raises:
            InputError: If something is there already.
        """
        self.path = Path(path)
        if self.path.exists():
            raise InputError(
                f"{self.path} exists; a bag is never overwritten, choose another path or remove it"
            )
        self._store = project_typestore() if store is None else store
        self.make = RosbagsFactory(self._store)
        self._writer = Writer(self.path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, Connection] = {}
        self.num_messages = 0

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abort()

    def write(
        self, topic: str, type_name: str, stamp_ns: int, message: Any, *, latched: bool = False
    ) -> None:
        """Append a message.

        Args:
            topic: Its topic; the first message fixes type and durability.
            type_name: Message type.
            stamp_ns: Time of arrival [ns].
            message: Made with `make`.
            latched: Offered to subscribers who come late.
        Raises:
            InputError: If the topic has another type.
        """
        self.write_raw(
            topic, type_name, stamp_ns, self._store.serialize_cdr(message, type_name), latched=latched
        )

    def write_raw(
        self, topic: str, type_name: str, stamp_ns: int, cdr: bytes | memoryview, *, latched: bool = False
    ) -> None:
        """Append a message that is serialised already; otherwise as `write`."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self._store, offered_qos_profiles=(_LATCHED,) if latched else ()
            )
        if connection.msgtype != type_name:
            raise InputError(
                f"topic {topic} is of type {connection.msgtype}, a {type_name} cannot be written to it"
            )
        self._writer.write(connection, stamp_ns, cdr)
        self.num_messages += 1


def write_scenario_bag(
    path: str | Path,
    messages: Iterable[SensorMessage],
    rig: Rig,
    *,
    odometry: Iterable[EgoState],
    route: Route | None = None,
    labels: Iterable[tuple[int, Boxes]] = (),
) -> int:
    """Write what a robot would have recorded, as a rosbag2.

    Args:
        path: Directory to create.
        messages: Sensor messages with `ImageSample` or `PointsSample` payloads, in order of arrival.
        rig: Their sensors; gives topics, frames, CameraInfo and /tf_static.
        odometry: In order of time; arrives when stamped.
        route: In the odometry frame; written once, at the start.
        labels: Stamp [ns] and true boxes in the base frame at that stamp, in order of time.
    Returns:
        Number of messages written.
    Raises:
        InputError: If something is at `path` already, or a payload does not belong to its sensor.
    """
    with BagWriter(path) as bag:
        make = bag.make
        streams: list[Iterator[tuple[int, str, str, Any]]] = [
            _sensor_stream(make, messages, rig),
            _odometry_stream(make, odometry, rig),
            _label_stream(make, labels, rig),
        ]
        begun = False
        for stamp_ns, topic, type_name, message in heapq.merge(*streams, key=lambda item: item[0]):
            if not begun:
                begun = True
                mounts = [
                    transform_message(make, stamp_ns, rig.base_frame, s.frame_id, s.base_from_sensor)
                    for s in rig.sensors
                ]
                bag.write("/tf_static", TF_TYPE, stamp_ns, make(TF_TYPE, transforms=mounts), latched=True)
                if route is not None:
                    bag.write(
                        rig.route_topic,
                        PATH_TYPE,
                        stamp_ns,
                        route_message(make, route, stamp_ns),
                        latched=True,
                    )
            bag.write(topic, type_name, stamp_ns, message)
        return bag.num_messages


def _sensor_stream(
    make: RosbagsFactory, messages: Iterable[SensorMessage], rig: Rig
) -> Iterator[tuple[int, str, str, Any]]:
    sensors = {sensor.name: sensor for sensor in rig.sensors}
    for message in messages:
        sensor = sensors[message.sensor]
        payload = message.payload
        if isinstance(sensor, Camera) and isinstance(payload, ImageSample):
            if sensor.camera_info_topic is not None:
                info = camera_info_message(make, sensor, message.stamp_ns)
                yield message.arrival_ns, sensor.camera_info_topic, CAMERA_INFO_TYPE, info
            jpeg = encode_jpeg(payload.rgb_HW3)
            picture = compressed_image_message(make, jpeg, message.stamp_ns, sensor.frame_id)
            yield message.arrival_ns, sensor.topic, COMPRESSED_IMAGE_TYPE, picture
        elif not isinstance(sensor, Camera) and isinstance(payload, PointsSample):
            cloud = points_message(make, payload, message.stamp_ns, sensor.frame_id)
            yield message.arrival_ns, sensor.topic, POINTS_TYPE, cloud
        else:
            raise InputError(
                f"{sensor.kind} {sensor.name!r} sent a {type(payload).__name__}, expected "
                f"{'ImageSample' if isinstance(sensor, Camera) else 'PointsSample'}"
            )


def _odometry_stream(
    make: RosbagsFactory, states: Iterable[EgoState], rig: Rig
) -> Iterator[tuple[int, str, str, Any]]:
    for state in states:
        stamp_ns = state.stamp_ns
        yield stamp_ns, rig.odom_topic, ODOMETRY_TYPE, odometry_message(make, state, rig.base_frame)
        transform = transform_message(make, stamp_ns, ODOM_FRAME, rig.base_frame, state.odom_from_base)
        yield stamp_ns, "/tf", TF_TYPE, make(TF_TYPE, transforms=[transform])


def _label_stream(
    make: RosbagsFactory, labels: Iterable[tuple[int, Boxes]], rig: Rig
) -> Iterator[tuple[int, str, str, Any]]:
    for stamp_ns, boxes in labels:
        yield (
            stamp_ns,
            LABELS_TOPIC,
            TRACKS_TYPE,
            tracks_message(make, _as_tracks(stamp_ns, boxes), rig.base_frame),
        )


def _as_tracks(stamp_ns: int, boxes: Boxes) -> Tracks:
    """Labels as tracks that were seen now and predict nothing."""
    n = len(boxes)
    return Tracks(
        stamp_ns=stamp_ns,
        boxes=boxes,
        ages_N=np.zeros(n, np.int64),
        coasted_N=np.zeros(n, np.int64),
        confirmed_N=np.ones(n, np.bool_),
        position_std_N2=np.zeros((n, 2), np.float32),
        futures_NMT2=np.zeros((n, 0, 0, 2), np.float32),
        futures_std_NMT2=np.zeros((n, 0, 0, 2), np.float32),
        mode_probabilities_NM=np.zeros((n, 0), np.float32),
        times_T=np.zeros(0),
    )


def encode_jpeg(rgb_HW3: NDArray[np.uint8]) -> bytes:
    """A picture as a camera's driver would compress it."""
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    assert done
    return data.tobytes()
