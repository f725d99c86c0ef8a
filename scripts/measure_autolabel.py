"""What `autolabel` is worth where the truth is known: its layer against a dataset's own labels.

    e2e-perception simulate --seed 400 --scenarios 8 --duration 6 --out runs/autolabel/bags
    e2e-perception ingest runs/autolabel/bags/* --out runs/autolabel/dataset
    e2e-perception autolabel runs/autolabel/dataset --bundle tiny --least-confidence 0 --out runs/autolabel/auto.parquet
    python scripts/measure_autolabel.py runs/autolabel/dataset runs/autolabel/auto.parquet [--json]

Beside it stand the confirmed tracks that the robot had at each frame, with the same bundle. Counted are objects
that a sensor saw, up to 60 m ahead and 20 m to either side; a label is of an object within 2 m, in pairs of
least total distance. The layer is to have all objects, whatever their confidence; `--least-confidence` is
what `autolabel` would have left out.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import source_tree  # noqa: F401
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.cli.autolabel_shard import causal_frames
from e2e_perception.cli.console import log
from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import E2EPerceptionError, InputError
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.label_layers import Layer, read_layer
from e2e_perception.data.shards import Dataset
from e2e_perception.data.timelines import ClipMotion, timelines
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engines import create_engine

NEAR = 2.0  # [m] within which a label is of an object
AREA = (0.0, 60.0, -20.0, 20.0)  # [m] x and y between which objects are looked for
FAR = 100.0  # [m] stands for no pair
BANDS = ((0.3, 0.6), (0.6, 0.8), (0.8, 1.01))  # of confidence
STATE = [BOX_FIELDS.index(name) for name in ("x", "y", "vx", "vy")]

Array = NDArray[np.float64]


@dataclass
class Errors:
    """Of labels against the truth, gathered over frames.

    Attributes:
        objects, found, labels, right: Objects that were seen, those with a label, labels, those of an object.
        places, velocities: Sums over the found [m], [m/s].
        confidences: Of every label, and whether it is of an object.
    """

    objects: int = 0
    found: int = 0
    labels: int = 0
    right: int = 0
    places: float = 0.0
    velocities: float = 0.0
    confidences: list[tuple[float, bool]] = field(default_factory=list)

    def add(self, clip: Clip, t: int, states_N4: Array, confidences_N: Array) -> None:
        """Compare the labels of one frame: x, y, vx, vy, base frame."""
        there = clip.ids_TB[t] >= 0
        truth = clip.boxes_TB10[t, there][:, STATE].astype(np.float64)
        every_gap = np.linalg.norm(truth[:, None, :2] - states_N4[None, :, :2], axis=-1)
        truth = truth[clip.visible_TB[t, there] & _in_area(truth)]
        gap = np.linalg.norm(truth[:, None, :2] - states_N4[None, :, :2], axis=-1)
        rows, columns = linear_sum_assignment(np.where(gap < NEAR, gap, FAR))
        good = gap[rows, columns] < NEAR
        rows, columns = rows[good], columns[good]
        self.objects += len(truth)
        self.found += len(rows)
        self.places += float(gap[rows, columns].sum())
        self.velocities += float(np.linalg.norm(truth[rows, 2:] - states_N4[columns, 2:], axis=1).sum())
        hit_N = np.zeros(len(states_N4), np.bool_)
        hit_N[columns] = True
        # Of an object that no sensor saw, or a second one of one that has a label, nothing is said.
        wrong_N = ~(every_gap < NEAR).any(axis=0) & _in_area(states_N4)
        self.right += int(hit_N.sum())
        self.labels += int((hit_N | wrong_N).sum())
        self.confidences += [
            (float(confidences_N[n]), bool(hit_N[n])) for n in np.flatnonzero(hit_N | wrong_N)
        ]

    def figures(self) -> dict[str, float | None]:
        """Recall, precision, and mean errors [m], [m/s] of what was found."""
        return {
            "recall": self.found / self.objects if self.objects else None,
            "precision": self.right / self.labels if self.labels else None,
            "place_m": self.places / self.found if self.found else None,
            "velocity_mps": self.velocities / self.found if self.found else None,
        }

    def reliability(self) -> list[dict[str, float | int]]:
        """By band of confidence: how many labels, their mean, and the share that is of an object."""
        table = []
        for low, high in BANDS:
            own = [(c, hit) for c, hit in self.confidences if low <= c < high]
            if own:
                mean, share = np.mean(own, axis=0).tolist()
                table.append({"from": low, "labels": len(own), "mean_confidence": mean, "right": share})
        return table


def _in_area(states_N4: Array) -> NDArray[np.bool_]:
    x, y = states_N4[:, 0], states_N4[:, 1]
    return np.asarray((x > AREA[0]) & (x < AREA[1]) & (y > AREA[2]) & (y < AREA[3]))


def measure(dataset: Dataset, layer: Layer, bundle_name: str, least: float) -> tuple[int, Errors, Errors]:
    """Frames, and the errors of the robot's tracks and of the layer.

    Raises:
        InputError: If a shard has no labels, or the layer is not of the dataset.
    """
    by_frame: defaultdict[tuple[str, str, int], list[tuple[float, ...]]] = defaultdict(list)
    for row in layer.rows:
        by_frame[(*layer.place(row.clip_id), row.stamp_ns)].append(
            (row.x, row.y, row.vx, row.vy, row.confidence)
        )
    bundle = load_bundle(bundle_name)
    robot, hindsight, frames = Errors(), Errors(), 0
    engine = create_engine(bundle)
    try:
        for shard, store in zip(dataset.shards(), dataset.stores(), strict=True):
            if layer.shards.get(shard.name) != shard.digest:
                raise InputError(f"the layer was not made for shard {shard.name}; make it with `autolabel`")
            clips = [store.read(index) for index in range(len(store))]
            if not all(clip.labels_valid for clip in clips):
                raise InputError(
                    f"shard {shard.name} has clips without labels, so that the truth is not known"
                )
            for timeline in timelines([ClipMotion.of(clip) for clip in clips], bundle.network.times_T):
                for stamp_ns, frame in causal_frames(store, timeline, bundle, engine):
                    place = timeline.frames[stamp_ns][0]
                    clip, clip_id = clips[place.clip], str(store.rows[place.clip]["clip_id"])
                    frames += 1
                    if frame is not None:
                        boxes = frame.tracks.boxes.select(np.flatnonzero(frame.tracks.confirmed_N))
                        states = np.column_stack([boxes.centers_N3[:, :2], boxes.velocities_N2])
                        robot.add(clip, place.t, states.astype(np.float64), np.ones(len(boxes)))
                    said = np.array(by_frame[shard.name, clip_id, stamp_ns], np.float64).reshape(-1, 5)
                    said = said[said[:, 4] >= least]
                    hindsight.add(clip, place.t, said[:, :4], said[:, 4])
    finally:
        engine.close()
    return frames, robot, hindsight


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="with labels, made by `ingest`")
    parser.add_argument("layer", type=Path, help="made of it by `autolabel --least-confidence 0`")
    parser.add_argument("--bundle", default="tiny", help="that made the layer")
    parser.add_argument("--least-confidence", type=float, default=0.3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        dataset = Dataset(options.dataset)
        frames, robot, hindsight = measure(
            dataset, read_layer(options.layer), options.bundle, options.least_confidence
        )
    except E2EPerceptionError as error:
        log(f"error: {error}")
        return 2
    found = {
        "dataset_digest": dataset.digest,
        "frames": frames,
        "objects": hindsight.objects,
        "robot": robot.figures(),
        "autolabel": hindsight.figures(),
        "reliability": hindsight.reliability(),
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(
        f"{frames} frames, {hindsight.objects} objects in them\n| | robot | autolabel |\n| --- | --- | --- |"
    )
    after = hindsight.figures()
    for name, value in robot.figures().items():
        cells = ("–" if number is None else f"{number:.3f}" for number in (value, after[name]))
        print(f"| {name} | {' | '.join(cells)} |")
    for band in hindsight.reliability():
        print(
            f"confidence from {band['from']}: {band['labels']} labels, mean {band['mean_confidence']:.2f}, "
            f"{band['right']:.2f} of an object"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
