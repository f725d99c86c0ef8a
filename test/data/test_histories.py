"""Labels of one recording: what a late frame still finds, and what is dropped."""

from __future__ import annotations

import numpy as np

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.frames import SE2
from e2e_perception.data.histories import LATE_FRAME_NS, LabelHistory

PERIOD_NS = 100_000_000


def seen(identity: int) -> Boxes:
    return Boxes(
        centers_N3=np.array([[10.0, 0.0, 0.8]], np.float32),
        sizes_N3=np.array([[4.0, 1.8, 1.6]], np.float32),
        yaws_N=np.zeros(1, np.float32),
        velocities_N2=np.zeros((1, 2), np.float32),
        class_ids_N=np.zeros(1, np.int64),
        scores_N=np.ones(1, np.float32),
        ids_N=np.array([identity], np.int64),
    )


def test_a_frame_that_comes_late_finds_the_labels_of_its_instant() -> None:
    labels = LabelHistory()
    for k in range(40):
        labels.add(k * PERIOD_NS, seen(7), SE2(0.0, 0.0, 0.0))
    labels.forget_before(LATE_FRAME_NS)
    assert labels.covers(0) and labels.at(0).ids_N.tolist() == [7]
    labels.forget_before(LATE_FRAME_NS + 5 * PERIOD_NS)
    late_ns = 5 * PERIOD_NS
    assert labels.covers(late_ns) and labels.at(late_ns).ids_N.tolist() == [7]
    assert not labels.covers(0) and not len(labels.at(0).ids_N), "memory does not grow with the recording"


def test_who_was_last_seen_long_before_a_late_frame_is_forgotten() -> None:
    labels = LabelHistory()
    labels.add(0, seen(1), SE2(0.0, 0.0, 0.0))
    labels.add(PERIOD_NS, seen(2), SE2(0.0, 0.0, 0.0))
    labels.add(20 * PERIOD_NS, seen(2), SE2(0.0, 0.0, 0.0))
    labels.forget_before(LATE_FRAME_NS + 10 * PERIOD_NS)
    assert set(labels._tracks) == {2}
