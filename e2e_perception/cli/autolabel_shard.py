"""One shard of a dataset through a bundle, and what comes of it as rows of a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from e2e_perception import __version__
from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.config import StackConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3, wrap_angle
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.tracks import Tracks
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.timelines import ClipMotion, Timeline, timelines
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engines import EngineInfo, InferenceEngine
from e2e_perception.runtime.auto_labels import AutoLabels, Evidence, auto_labels
from e2e_perception.runtime.lidar_evidence import occupied
from e2e_perception.runtime.offline_tracks import SeenFrame, seen_frame
from e2e_perception.runtime.perception import Perception, Place
from e2e_perception.runtime.preprocess import PreparedFrame

SOURCE = "autolabel"
TOOL = f"e2e-perception {__version__}"
REMEMBERED = ("bev_theta", "memory_valid", "track_tokens", "track_boxes", "track_valid")
NO_POINTS = np.zeros((0, 3), np.float32)


@dataclass(frozen=True)
class Thresholds:
    """What is no label.

    Attributes:
        least_sightings: Detections below which a track is left out.
        least_confidence: Below which a track is left out.
    """

    least_sightings: int
    least_confidence: float


@dataclass
class LabelledShard:
    """What came of a shard.

    Attributes:
        rows: Of the layer.
        complete: Clips whose every frame had a lidar or a camera, and outputs that are usable.
        frames, tracks: How many.
        by_class: Labels in frames, each counted once.
        left_out: Tracks, by reason.
        bad_frames: Frames whose outputs were not usable.
        blind_frames: Frames without any lidar and camera: who is there could not be seen.
    """

    rows: list[LayerRow] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    frames: int = 0
    tracks: int = 0
    by_class: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    bad_frames: int = 0
    blind_frames: int = 0


@dataclass(frozen=True)
class CausalFrame:
    """What the stack knows of a frame when it comes.

    Attributes:
        stamp_ns: [ns]
        tracks: Of the track manager.
        seen: The frame with its detections.
        evidence: Of the lidar.
        blind: Whether it has neither a lidar nor a camera.
    """

    stamp_ns: int
    tracks: Tracks
    seen: SeenFrame
    evidence: Evidence
    blind: bool


class _Overheard:
    """An engine whose last outputs are kept: among them weak detections, which the stack has no use for."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self.outputs: Mapping[str, NDArray[np.float32]] = {}

    @property
    def contract(self) -> TensorContract:
        """See `InferenceEngine`."""
        return self._engine.contract

    @property
    def info(self) -> EngineInfo:
        """See `InferenceEngine`."""
        return self._engine.info

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine`."""
        outputs = self._engine.infer(inputs)
        self.outputs = outputs
        return outputs

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine`."""
        return self._engine.state()

    def reset_state(self) -> None:
        """See `InferenceEngine`."""
        self._engine.reset_state()

    def close(self) -> None:
        """The engine stays its owner's to close."""


def label_shard(
    store: ClipStore,
    bundle: Bundle,
    engine: InferenceEngine,
    network: NetworkConfig,
    thresholds: Thresholds,
    progress: Callable[[int], None] | None = None,
) -> LabelledShard:
    """Label all frames of a shard.

    Args:
        store: Its clips.
        bundle: That looks at them.
        engine: Which runs it.
        network: Whose inputs the clips are.
        thresholds: What is no label.
        progress: Told how many frames have been looked at.
    Raises:
        InputError: If the clips are not what the bundle takes.
    """
    made = LabelledShard()
    names = [f"{store.path.name}/{row['clip_id']}" for row in store.rows]
    spoiled: set[int] = set()
    for timeline in timelines([ClipMotion.of(store.read(i)) for i in range(len(store))], network.times_T):
        frames: list[CausalFrame] = []
        for stamp_ns, frame in causal_frames(store, timeline, bundle, engine):
            made.frames += 1
            if frame is None:
                made.bad_frames += 1
            else:
                frames.append(frame)
                made.blind_frames += frame.blind
            if frame is None or frame.blind:
                spoiled |= {place.clip for place in timeline.frames[stamp_ns]}
            if progress is not None:
                progress(made.frames)
        found = auto_labels(
            [frame.seen for frame in frames],
            [frame.evidence for frame in frames],
            least_sightings=thresholds.least_sightings,
            least_confidence=thresholds.least_confidence,
        )
        made.rows += _rows(found, frames, timeline, names, bundle.digest, made.tracks)
        made.tracks += len(found.tracks)
        for track in found.tracks:
            made.by_class[CLASSES[track.class_id]] += int(track.alone_K.sum())
        made.left_out.update(short=found.too_short, doubtful=found.too_doubtful, doubled=found.doubled)
    made.complete = [name for i, name in enumerate(names) if i not in spoiled]
    return made


def causal_frames(
    store: ClipStore, timeline: Timeline, bundle: Bundle, engine: InferenceEngine
) -> Iterator[tuple[int, CausalFrame | None]]:
    """Play a timeline to the network as if it happened now: stamp and what it saw, None if that is unusable.

    Raises:
        InputError: If the clips are not what the bundle takes.
    """
    overheard = _Overheard(engine)
    engine.reset_state()
    perception = Perception(bundle.network, overheard, StackConfig())
    first_ns = next(iter(timeline.frames))
    number, clip = -1, None
    for stamp_ns, places in timeline.frames.items():
        # Of a frame in several clips the last: clips overlap in order, and one is read once.
        if places[-1].clip != number or clip is None:
            number = places[-1].clip
            clip = store.read(number)
            _check_inputs(clip, bundle, f"{store.path.name}/{store.rows[number]['clip_id']}")
        t = places[-1].t
        pose = timeline.pose(stamp_ns)
        assert pose is not None  # frames have one
        prepared = PreparedFrame(stamp_ns, _inputs(clip, t), {}, None, None, NO_POINTS)
        place = Place(stamp_ns, SE3.planar(pose.x, pose.y, pose.yaw), 0)
        tracks = perception.step(prepared, place, _no_mark).tracks
        if tracks is None:
            yield stamp_ns, None
            continue
        seen = seen_frame((stamp_ns - first_ns) * 1e-9, pose, tracks, overheard.outputs)
        lidar = clip.inputs["lidar_valid"][t].any()
        bits = occupied(clip.inputs["lidar_raster"][t]) if lidar else None  # type: ignore[arg-type]
        blind = not (lidar or clip.inputs["camera_valid"][t].any())
        yield stamp_ns, CausalFrame(stamp_ns, tracks, seen, Evidence.of(bits, bundle.network.grid), blind)


def _no_mark() -> None:
    """Stages are not timed."""


def _inputs(clip: Clip, t: int) -> dict[str, NDArray[np.generic]]:
    frames = {name: value[t : t + 1] for name, value in clip.inputs.items()}
    return {
        name: np.ascontiguousarray(value if value.dtype == np.uint8 else value.astype(np.float32))
        for name, value in frames.items()
    }


def _check_inputs(clip: Clip, bundle: Bundle, name: str) -> None:
    fed_back = {target for _, target in bundle.contract.state} | set(REMEMBERED)
    expected = {spec.name: spec.shape[1:] for spec in bundle.contract.inputs if spec.name not in fed_back}
    got = {key: value.shape[1:] for key, value in clip.inputs.items()}
    for key in sorted(expected.keys() | got.keys()):
        if expected.get(key) != got.get(key):
            raise InputError(
                f"clip {name}: input {key} is {got.get(key, 'not there')}, bundle {bundle} takes "
                f"{expected.get(key, 'none')}; make clips of its size, {bundle.network.size}"
            )


def _rows(
    found: AutoLabels,
    frames: Sequence[CausalFrame],
    timeline: Timeline,
    names: Sequence[str],
    bundle_digest: str,
    first_identity: int,
) -> Iterator[LayerRow]:
    """Every label in the base frame of its instant, once for each clip that has the frame."""
    for identity, track in enumerate(found.tracks, first_identity):
        for k in np.flatnonzero(track.alone_K).tolist():
            frame = frames[track.first + k]
            base_from_odom = frame.seen.odom_from_base.inverse()
            x, y = base_from_odom.apply(track.centers_K3[k, :2]).tolist()
            vx, vy = base_from_odom.rotate(track.velocities_K2[k]).tolist()
            for place in timeline.frames[frame.stamp_ns]:
                yield LayerRow(
                    clip_id=names[place.clip],
                    stamp_ns=frame.stamp_ns,
                    identity=identity,
                    class_name=CLASSES[track.class_id],
                    x=x,
                    y=y,
                    z=float(track.centers_K3[k, 2]),
                    length=track.size[0],
                    width=track.size[1],
                    height=track.size[2],
                    yaw=float(wrap_angle(track.yaws_K[k] + base_from_odom.yaw)),
                    vx=vx,
                    vy=vy,
                    source=SOURCE,
                    tool=TOOL,
                    bundle_digest=bundle_digest,
                    confidence=float(track.confidences_K[k]),
                    reviewer=None,
                    verdict="label",
                )
