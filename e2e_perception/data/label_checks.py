"""What is odd about the labels of one clip: identities, sizes, motion and conventions.

Legend: T frames, L label slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS

Severity = Literal["info", "warning", "error"]
Told = tuple[str, Severity, str, int]
X, Y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")
SIZE = [BOX_FIELDS.index(f"log_{name}") for name in ("length", "width", "height")]
SIN, COS = BOX_FIELDS.index("sin_yaw"), BOX_FIELDS.index("cos_yaw")
VX, VY = BOX_FIELDS.index("vx"), BOX_FIELDS.index("vy")
# Fastest that a label's centre is believed to move, and to change that, by class [m/s, m/s^2].
BELIEVABLE = {
    "car": (70.0, 15.0),
    "truck": (45.0, 10.0),
    "pedestrian": (8.0, 10.0),
    "cyclist": (25.0, 12.0),
    "obstacle": (1.0, 5.0),
}
POSITION_NOISE = 0.3  # [m] of a label's centre from frame to frame that is nobody's fault
SIZE_CHANGE = 0.2  # share by which a size may differ from the identity's median
FACES_ALONG = 2.0  # [m/s] from which on a vehicle is believed to move along its heading
SWITCH_DISTANCE = 1.5  # [m] from where one identity ends to where another begins


def of_labels(clip: Clip) -> list[Told]:
    """Identities, sizes, motion and conventions of a clip's labels.

    Returns:
        Check, severity, message and a frame to look at [ns].
    """
    if not clip.labels_valid:
        return []
    told: list[Told] = []
    odom = _in_first_frame(clip)
    stamps = clip.stamps_ns_T
    identities = np.unique(clip.ids_TB[clip.ids_TB >= 0])
    ends: list[tuple[int, int, int, NDArray[np.float64]]] = []
    for identity in identities.tolist():
        t, slot = np.nonzero(clip.ids_TB == identity)
        order = np.argsort(t)
        t, slot = t[order], slot[order]
        if len(np.unique(t)) < len(t):
            told.append(
                ("identity", "error", f"identity {identity} is there twice in a frame", int(stamps[t[0]]))
            )
            continue
        told += _of_one(clip, odom, identity, t, slot)
        ends.append((identity, int(t[0]), int(t[-1]), odom[t[-1], slot[-1], :2]))
    told += _switches(clip, odom, ends)
    return told


def _in_first_frame(clip: Clip) -> NDArray[np.float64]:
    """(T, L, 3) x, y [m], yaw [rad] of all labels in the base frame of the first frame."""
    poses = np.zeros((*clip.ids_TB.shape, 3))
    here = SE2(0.0, 0.0, 0.0)
    for t, step in enumerate(clip.memory_from_base_T3.tolist()):
        here = here @ SE2(*step) if t else here
        poses[t, :, :2] = here.apply(clip.boxes_TB10[t][:, [X, Y]])
        yaws = np.arctan2(clip.boxes_TB10[t, :, SIN], clip.boxes_TB10[t, :, COS])
        poses[t, :, 2] = wrap_angle(yaws + here.yaw)
    return poses


def _of_one(
    clip: Clip,
    odom: NDArray[np.float64],
    identity: int,
    t: NDArray[np.int64],
    slot: NDArray[np.int64],
) -> Iterator[Told]:
    """One identity in the frames where it is."""
    stamps = clip.stamps_ns_T[t]
    boxes = clip.boxes_TB10[t, slot]
    classes = clip.class_ids_TB[t, slot]
    name = CLASSES[int(np.bincount(classes).argmax())]
    who = f"{name} {identity}"
    if len(np.unique(classes)) > 1:
        names = ", ".join(CLASSES[int(c)] for c in np.unique(classes))
        yield "class_change", "warning", f"{who} is called {names}", int(stamps[0])
    sizes = np.exp(boxes[:, SIZE])
    change = np.abs(sizes / np.median(sizes, axis=0) - 1.0).max(axis=1)
    if change.max() > SIZE_CHANGE:
        at = int(change.argmax())
        yield "size", "warning", f"{who} changes its size by {change[at]:.0%}", int(stamps[at])
    if len(t) < 2:
        return
    places = odom[t, slot, :2]
    seconds = np.diff(stamps) * 1e-9
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    speeds = np.maximum(steps - POSITION_NOISE, 0.0) / seconds
    fastest, hardest = BELIEVABLE[name]
    if speeds.max() > fastest:
        at = int(speeds.argmax())
        yield "jump", "error", f"{who} moves {steps[at]:.1f} m in {seconds[at]:.2f} s", int(stamps[at])
        return
    stated = np.hypot(boxes[:, VX], boxes[:, VY])
    changes = np.abs(np.diff(stated)) / seconds
    if changes.max() > 2.0 * hardest:
        at = int(changes.argmax())
        message = f"{who} changes its stated speed by {changes[at]:.0f} m/s², at most {hardest:g} is believed"
        yield "acceleration", "warning", message, int(stamps[at])
    # Conventions: what is stated against what the centres do, over the whole stretch.
    way, took = places[-1] - places[0], float(seconds.sum())
    moved = float(np.linalg.norm(way)) / took
    if took > 0.3 and abs(moved - float(stated.mean())) > 1.0 + 0.3 * moved:
        message = (
            f"{who} is said to drive {stated.mean():.1f} m/s and moves {moved:.1f} m/s; check units and frame"
        )
        yield "velocity", "warning", message, int(stamps[0])
    if moved > FACES_ALONG and name in ("car", "truck", "cyclist"):
        off = abs(float(wrap_angle(np.arctan2(way[1], way[0]) - odom[t[0], slot[0], 2])))
        if off > np.deg2rad(60.0):
            message = f"{who} moves {np.rad2deg(off):.0f}° off its heading; check the convention of yaw"
            yield "heading", "warning", message, int(stamps[0])


def _switches(
    clip: Clip, odom: NDArray[np.float64], ends: Iterable[tuple[int, int, int, NDArray[np.float64]]]
) -> Iterator[Told]:
    """Somebody who ends where somebody of the same kind begins in the next frame."""
    known = list(ends)
    for identity, _, last, place in known:
        if last + 1 >= len(clip):
            continue
        for other, first, _, _ in known:
            if other == identity or first != last + 1:
                continue
            slot = int(np.flatnonzero(clip.ids_TB[first] == other)[0])
            own = int(np.flatnonzero(clip.ids_TB[last] == identity)[0])
            same = clip.class_ids_TB[first, slot] == clip.class_ids_TB[last, own]
            if same and np.linalg.norm(odom[first, slot, :2] - place) < SWITCH_DISTANCE:
                message = f"identity {identity} ends where {other} begins in the next frame"
                yield "switch", "warning", message, int(clip.stamps_ns_T[first])
