"""`track`: detections of any detector, in KITTI's formats, through the Kalman tracker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, print_table, progress_bar
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from e2e_perception.cli.kitti_tracking import SequenceTracker
    from e2e_perception.runtime.kalman_tracker import KalmanTrackerConfig

PROGRESS_FRAMES = 50  # between two signs of life


class Format(str, Enum):
    """Of detections and results."""

    KITTI = "kitti"


def track(
    detections: Annotated[
        Path,
        typer.Argument(
            help="A file is one sequence; a directory holds one file per sequence, or one per frame.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File of results; for a directory of sequences, a directory. What is there is replaced.",
            show_default=False,
        ),
    ],
    input_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="`kitti`: AB3DMOT's lines with commas, or KITTI's of tracking or object detection; the "
            "first line tells which.",
        ),
    ] = Format.KITTI,
    period: Annotated[float, typer.Option(min=0.001, max=60.0, help="Between two frames [s].")] = 0.1,
    poses: Annotated[
        Path | None,
        typer.Option(
            help="Where the camera was: a file with the 12 numbers of odom_from_camera (3x4) a frame, or a "
            "directory of such, named as the sequences. Default: the camera stands still, or nobody knows.",
            show_default=False,
        ),
    ] = None,
    coasting: Annotated[
        bool, typer.Option("--coasting", help="Also write tracks where a frame does not show them.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the tracker, e.g. `metric=iou_3d`, `car.max_age=5`, or for all classes "
            "`max_age=5`; repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give detections identities, with a Kalman filter for each object and the Hungarian method.

    Results are in KITTI's tracking format with a score, as TrackEval and AB3DMOT's evaluator read them: boxes
    are the filter's, the place in the picture is the detection's. A track is written once it is confirmed.

    Example: `e2e-perception track detections/Car --out results/data --set birth_score=2.0`
    """
    from e2e_perception.cli.kitti_tracking import Counts, SequenceTracker
    from e2e_perception.data.kitti import find_sequences, read_poses

    config = tracker_config(settings or ())
    sequences = find_sequences(detections)
    pose_files = _pose_files(poses, sequences)
    results = _results(detections, sequences, out)
    total = Counts()
    started = time.perf_counter()
    with progress_bar("tracking", len(sequences)) as progress:
        for done, (name, path) in enumerate(sequences.items()):
            known_poses = read_poses(pose_files[name]) if pose_files else None
            tracker = SequenceTracker(config, period, known_poses, coasting)
            _track_file(tracker, path, results[name], partial(progress, done))
            total.frames += tracker.counts.frames
            total.detections += tracker.counts.detections
            total.tracks += tracker.counts.tracks
    seconds = time.perf_counter() - started
    summary = {
        "sequences": len(sequences),
        **vars(total),
        "seconds": seconds,
        "frames_per_s": total.frames / seconds,
        "out": str(out),
    }
    if as_json:
        emit_json(summary)
        return
    rows = [
        (name, f"{value:.1f}" if isinstance(value, float) else str(value)) for name, value in summary.items()
    ]
    print_table(f"Tracked {detections}", ("figure", "value"), rows)


def tracker_config(settings: Sequence[str]) -> KalmanTrackerConfig:
    """The tracker's settings: defaults, and `KEY=VALUE` over them in their order.

    Raises:
        ConfigError: For a setting that there is not, or a value out of range.
    """
    import yaml

    from e2e_perception.core.config import validated
    from e2e_perception.runtime.kalman_tracker import ClassTracking, KalmanTrackerConfig

    document: dict[str, Any] = KalmanTrackerConfig().model_dump()
    for setting in settings:
        key, given, text = setting.partition("=")
        if not given:
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, e.g. max_age=5")
        name, dot, leaf = key.partition(".")
        if dot and name in CLASSES and leaf in ClassTracking.model_fields:
            targets = [document[name]]
        elif not dot and name in ClassTracking.model_fields:
            targets, leaf = [document[c] for c in CLASSES], name
        elif not dot and name in document and name not in CLASSES:
            targets, leaf = [document], name
        else:
            general = [field for field in document if field not in CLASSES]
            raise ConfigError(
                f"--set {setting!r}: unknown setting {key!r}; there are {', '.join(general)}, and, for all "
                f"classes or as in `car.max_age` for one, {', '.join(ClassTracking.model_fields)}"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not valid YAML") from error
        for target in targets:
            target[leaf] = value
    return validated(KalmanTrackerConfig, document, "--set")


def _results(detections: Path, sequences: dict[str, Path], out: Path) -> dict[str, Path]:
    """Where the results of each sequence go; the directory is made.

    Raises:
        InputError: If they would replace the detections, or a file is where a directory has to be.
    """
    if out.resolve() == detections.resolve() or out.resolve().is_relative_to(detections.resolve()):
        raise InputError(f"--out {out} is the detections, or among them; name another place")
    if list(sequences.values()) == [detections]:
        if out.is_dir():
            raise InputError(f"--out {out} is a directory; for the one sequence {detections} name a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        return dict.fromkeys(sequences, out)
    if out.is_file():
        raise InputError(f"--out {out} is a file; for the sequences in {detections} name a directory")
    out.mkdir(parents=True, exist_ok=True)
    return {name: out / f"{name}.txt" for name in sequences}


def _pose_files(poses: Path | None, sequences: dict[str, Path]) -> dict[str, Path]:
    if poses is None:
        return {}
    if not poses.is_dir():
        if len(sequences) > 1:
            raise InputError(f"--poses {poses} is one file for {len(sequences)} sequences; give a directory")
        files = dict.fromkeys(sequences, poses)
    else:
        files = {name: poses / f"{name}.txt" for name in sequences}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(f"no poses at {missing[0]}; expected 12 numbers a frame there")
    return files


def _track_file(tracker: SequenceTracker, path: Path, result: Path, alive: Callable[[str], None]) -> None:
    """Track one sequence; what was at `result` stays until all of it has been read."""
    from e2e_perception.data.kitti import read_sequence, write_frame

    unfinished = result.with_name(f".{result.name}.partial")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for frame in tracker.run(read_sequence(path)):
                write_frame(file, frame)
                if frame.number % PROGRESS_FRAMES == 0:
                    alive(f"{path.stem}: {tracker.counts.frames} frames")
        unfinished.replace(result)
    finally:
        unfinished.unlink(missing_ok=True)
