"""HOTA, against the reference implementation of its authors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")
pytest.importorskip("trackeval", reason="TrackEval is not installed: `make setup` does that")

from perceived_frames import boxes
from trackeval.metrics.hota import HOTA

from e2e_perception.evaluation.frames import Compared, distances
from e2e_perception.evaluation.hota import hota_sums
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE


def random_drive(seed: int, num_frames: int) -> list[Compared]:
    """Objects and tracks that come, go, swap and are metres off."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(num_frames):
        labels, tracks = [], []
        for identity in range(6):
            x, y = 8.0 * identity, float(rng.normal())
            if rng.random() < 0.8:
                labels.append((identity, x, y))
            if rng.random() < 0.8:
                swapped = identity + (1 if rng.random() < 0.2 and identity < 5 else 0)
                if all(track[0] != 10 + swapped for track in tracks):
                    off = rng.normal(0.0, 0.9, 2)
                    tracks.append((10 + swapped, x + float(off[0]), y + float(off[1])))
        there, found = boxes(labels), boxes(tracks)
        rows = (np.arange(len(labels)), np.arange(len(tracks)))
        frames.append(Compared(there, found, *rows, distances(there, found)))
    return frames


def theirs(frames: list[Compared]) -> dict[str, float]:
    identities = (
        sorted({int(i) for f in frames for i in f.labels.ids_N}),
        sorted({int(i) for f in frames for i in f.tracks.ids_N}),
    )
    data = {
        "num_gt_ids": len(identities[0]),
        "num_tracker_ids": len(identities[1]),
        "num_gt_dets": sum(len(f.labels.ids_N) for f in frames),
        "num_tracker_dets": sum(len(f.tracks.ids_N) for f in frames),
        "gt_ids": [np.searchsorted(identities[0], f.labels.ids_N) for f in frames],
        "tracker_ids": [np.searchsorted(identities[1], f.tracks.ids_N) for f in frames],
        "similarity_scores": [np.maximum(1.0 - f.distance_LN / MATCH_DISTANCE, 0.0) for f in frames],
    }
    found = HOTA().eval_sequence(data)
    return {"hota": found["HOTA"].mean(), "deta": found["DetA"].mean(), "assa": found["AssA"].mean()}


@given(seed=st.integers(0, 10_000), num_frames=st.integers(2, 30))
def test_hota_is_that_of_trackeval(seed: int, num_frames: int) -> None:
    frames = random_drive(seed, num_frames)
    ours, reference = hota_sums(frames).figures(), theirs(frames)
    for name, value in reference.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-9), name
