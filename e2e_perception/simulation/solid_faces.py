"""What solids look like to a camera: lit faces, and details by which a network can tell classes apart.

Legend: N boxes, P facets, S kinds of detail. Faces are counted +x, -x, +y, -y, +z, -z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, footprint_corners_N42
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.solid_geometry import Segments

SUN = np.array([0.42, 0.33, 0.85]) / np.linalg.norm([0.42, 0.33, 0.85])  # towards it, odom axes
AMBIENT = 0.5  # light on a face turned away from the sun
LAMP_BRIGHTNESS = 0.7  # lamps never look darker than this
SHADOW_COLOR = (42.0, 42.0, 46.0)
SHADOW_LENGTH = 0.35  # of what the sun would cast; a whole one would need the ground's colours below it

FRONT, REAR, LEFT, RIGHT, TOP, BOTTOM = range(6)
# Corners (see `CORNER_SIGNS_83`) of each face: two at its lower edge, then the two above them in reverse.
_FACE_CORNERS_64 = np.array(
    [[4, 6, 7, 5], [0, 2, 3, 1], [2, 6, 7, 3], [0, 4, 5, 1], [1, 5, 7, 3], [0, 4, 6, 2]]
)

Role = Literal["main", "whole", "nose"]
_ROLES: tuple[Role, ...] = ("main", "whole", "nose")


@dataclass(frozen=True)
class Detail:
    """A rectangle on a face of an agent.

    Attributes:
        class_name: Which agents have it.
        role: On which of an agent's solids: `main`, the one with the largest footprint; `whole`, that one if
            it makes up most of the height, too; `nose`, a high one at the front end.
        faces: On which faces.
        across: From and to, as a share of the face's width; mirrored as well if `mirrored`.
        heights: From and to, as a share of the agent's height above its lower end.
        color: (r, g, b), 0..255.
    """

    class_name: str
    role: Role
    faces: tuple[int, ...]
    across: tuple[float, float]
    heights: tuple[float, float]
    color: tuple[int, int, int]
    mirrored: bool = False
    is_lamp: bool = False


_SIDES, _AROUND = (LEFT, RIGHT), (FRONT, REAR, LEFT, RIGHT)
_GLASS, _TYRE, _SKIN, _TROUSERS = (38, 44, 52), (24, 24, 26), (205, 165, 140), (48, 50, 66)
_RED, _WHITE = (205, 28, 24), (235, 232, 215)
DETAILS = (
    Detail("car", "main", _SIDES, (0.10, 0.26), (0.0, 0.40), _TYRE, mirrored=True),
    Detail("car", "main", (REAR,), (0.03, 0.22), (0.40, 0.53), _RED, mirrored=True, is_lamp=True),
    Detail("car", "main", (FRONT,), (0.03, 0.22), (0.38, 0.50), _WHITE, mirrored=True, is_lamp=True),
    Detail("car", "main", (FRONT, REAR), (0.36, 0.64), (0.22, 0.32), (225, 225, 220)),
    Detail("car", "whole", _SIDES, (0.14, 0.84), (0.58, 0.92), _GLASS),
    Detail("car", "whole", (FRONT, REAR), (0.08, 0.92), (0.58, 0.92), _GLASS),
    Detail("truck", "main", _SIDES, (0.08, 0.18), (0.0, 0.27), _TYRE, mirrored=True),
    Detail("truck", "main", (REAR,), (0.03, 0.16), (0.25, 0.33), _RED, mirrored=True, is_lamp=True),
    Detail("truck", "whole", _SIDES, (0.04, 0.96), (0.45, 0.78), _GLASS),
    Detail("truck", "nose", (FRONT,), (0.06, 0.94), (0.42, 0.66), _GLASS),
    Detail("truck", "nose", (FRONT,), (0.03, 0.18), (0.17, 0.25), _WHITE, mirrored=True, is_lamp=True),
    Detail("pedestrian", "main", _AROUND, (0.22, 0.78), (0.86, 1.0), _SKIN),
    Detail("pedestrian", "main", _AROUND, (0.0, 1.0), (0.0, 0.47), _TROUSERS),
    Detail("cyclist", "main", _AROUND, (0.25, 0.75), (0.86, 1.0), _SKIN),
)


@dataclass(frozen=True)
class Facets:
    """P coloured quadrilaterals, each painted over the earlier ones.

    Attributes:
        corners_P43: (P, 4, 3) float64 [m], odom frame, in order around the quadrilateral.
        colors_P3: (P, 3) float64, 0..255, light included, haze not.
        labels_P: (P,) int64, row of the snapshot's boxes, or -1.
        solid_P: (P,) bool: a face of a solid, not a shadow or a detail on a face.
    """

    corners_P43: NDArray[np.float64]
    colors_P3: NDArray[np.float64]
    labels_P: NDArray[np.int64]
    solid_P: NDArray[np.bool_]


def facets(
    snapshot: Snapshot, boxes: Segments, viewpoint_3: NDArray[np.float64], detailed_N: NDArray[np.bool_]
) -> Facets:
    """Everything to paint above the ground: shadows, then faces turned to the viewpoint with their details.

    Args:
        snapshot: Where the boxes come from.
        boxes: N boxes, in the order in which they are to be painted.
        viewpoint_3: (3,) [m], odom frame.
        detailed_N: (N,) bool, boxes large enough in the image to need details.
    """
    brightness = snapshot.conditions.brightness
    visible_N6 = _visible_faces(boxes, viewpoint_3)
    shade_N6 = _shades(boxes) * brightness
    corners_N643 = boxes.corners_N83()[:, _FACE_CORNERS_64]
    labels_N = snapshot.solids.labels_N[boxes.solids_N]

    n, face = np.nonzero(visible_N6)
    colors = snapshot.solids.colors_N3[boxes.solids_N[n]] * shade_N6[n, face, None]

    whole_N = boxes.ends_N2.all(axis=1)
    has_detail_NS = _has_detail(snapshot, boxes, labels_N) & visible_N6[:, _DETAIL_FACE_S]
    m, s = np.nonzero(has_detail_NS & (detailed_N & whole_N)[:, None])
    details = _rectangles(snapshot, boxes, labels_N, corners_N643, m, s)
    light = np.where(_DETAIL_IS_LAMP_S[s], max(brightness, LAMP_BRIGHTNESS), shade_N6[m, _DETAIL_FACE_S[s]])
    detail_colors = _DETAIL_COLOR_S3[s] * light[:, None]

    shadows = _shadows(snapshot)
    num_layers = len(_DETAIL_FACE_S) + 1
    order = np.argsort(np.concatenate([n * num_layers, m * num_layers + 1 + s]), kind="stable")
    num_shadows = len(shadows)
    return Facets(
        corners_P43=np.concatenate([shadows, np.concatenate([corners_N643[n, face], details])[order]]),
        colors_P3=np.concatenate(
            [
                np.tile(np.array(SHADOW_COLOR) * brightness, (num_shadows, 1)),
                np.concatenate([colors, detail_colors])[order],
            ]
        ),
        labels_P=np.concatenate(
            [np.full(num_shadows, -1), np.concatenate([labels_N[n], labels_N[m]])[order]]
        ),
        solid_P=np.concatenate([np.zeros(num_shadows, np.bool_), order < len(n)]),
    )


def _visible_faces(boxes: Segments, viewpoint_3: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N, 6) bool; cuts through a long solid are no faces."""
    view = boxes.to_box_frames_N3(viewpoint_3)
    beyond = np.stack([view > boxes.halves_N3, view < -boxes.halves_N3], axis=-1).reshape(-1, 6)
    beyond[:, :2] &= boxes.ends_N2
    return np.asarray(beyond)


def _shades(boxes: Segments) -> NDArray[np.float64]:
    """(N, 6) light on each face by Lambert's law, AMBIENT..1."""
    c, s = boxes.cosines_N, boxes.sines_N
    along, aside = c * SUN[0] + s * SUN[1], c * SUN[1] - s * SUN[0]
    up = np.full(len(boxes), SUN[2])
    towards = np.stack([along, -along, aside, -aside, up, -up], axis=-1)
    return np.asarray(AMBIENT + (1.0 - AMBIENT) * np.maximum(towards, 0.0))


def _shadows(snapshot: Snapshot) -> NDArray[np.float64]:
    """(L, 4, 3) [m] on the ground below each agent, a little longer away from the sun."""
    boxes = snapshot.boxes
    shift = -SUN[:2] / SUN[2] * SHADOW_LENGTH * boxes.sizes_N3[:, 2:]
    middle = boxes.centers_N3[:, :2] + 0.5 * shift
    sizes = boxes.sizes_N3[:, :2] + 0.7 * np.abs(shift)
    flat = footprint_corners_N42(middle, sizes, boxes.yaws_N)
    return np.concatenate([flat, np.zeros((len(flat), 4, 1))], axis=-1)


def _has_detail(snapshot: Snapshot, boxes: Segments, labels_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, S) bool: class and role fit."""
    agents = snapshot.boxes
    if len(agents) == 0:
        return np.zeros((len(boxes), len(_DETAIL_FACE_S)), np.bool_)
    rows = np.maximum(labels_N, 0)
    class_N = np.where(labels_N >= 0, agents.class_ids_N[rows], -1)
    solids = snapshot.solids
    footprints = solids.sizes_N3[:, 0] * solids.sizes_N3[:, 1]
    largest = np.zeros(len(agents))
    np.maximum.at(largest, np.maximum(solids.labels_N, 0), np.where(solids.labels_N >= 0, footprints, 0.0))
    is_main = footprints[boxes.solids_N] >= largest[rows] - 1e-9
    height_share = 2.0 * boxes.halves_N3[:, 2] / agents.sizes_N3[rows, 2]
    # How far the part's front end lies behind the agent's.
    ahead = boxes.centers_N3[:, :2] - agents.centers_N3[rows, :2]
    forward = boxes.cosines_N * ahead[:, 0] + boxes.sines_N * ahead[:, 1]
    set_back = 0.5 * agents.sizes_N3[rows, 0] - forward - boxes.halves_N3[:, 0]
    role_N3 = np.stack(
        [is_main, is_main & (height_share > 0.75), (np.abs(set_back) < 0.15) & (height_share > 0.5)], axis=-1
    )
    return np.asarray((class_N[:, None] == _DETAIL_CLASS_S) & role_N3[:, _DETAIL_ROLE_S])


def _rectangles(
    snapshot: Snapshot,
    boxes: Segments,
    labels_N: NDArray[np.int64],
    corners_N643: NDArray[np.float64],
    n: NDArray[np.int64],
    s: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(D, 4, 3) [m]: detail s on box n, for D pairs."""
    agents = snapshot.boxes
    corners = corners_N643[n, _DETAIL_FACE_S[s]]
    low_edge, up = corners[:, 0], corners[:, 3] - corners[:, 0]
    right = corners[:, 1] - corners[:, 0]
    agent = labels_N[n]
    agent_height = agents.sizes_N3[agent, 2].astype(np.float64)
    agent_bottom = agents.centers_N3[agent, 2] - 0.5 * agent_height
    part_height = 2.0 * boxes.halves_N3[n, 2]
    part_bottom = boxes.centers_N3[n, 2] - 0.5 * part_height
    heights = agent_bottom[:, None] + agent_height[:, None] * _DETAIL_HEIGHTS_S2[s]
    v = np.minimum((heights - part_bottom[:, None]) / part_height[:, None], 1.0)
    u = _DETAIL_ACROSS_S2[s]
    u_D4, v_D4 = u[:, [0, 1, 1, 0]], v[:, [0, 0, 1, 1]]
    across, above = u_D4[..., None] * right[:, None], v_D4[..., None] * up[:, None]
    return np.asarray(low_edge[:, None] + across + above)


def _spread(details: tuple[Detail, ...]) -> list[tuple[Detail, int, tuple[float, float]]]:
    """One row per detail, face and side."""
    rows = []
    for detail in details:
        low, high = detail.across
        sides = [(low, high), (1.0 - high, 1.0 - low)] if detail.mirrored else [(low, high)]
        rows += [(detail, face, side) for face in detail.faces for side in sides]
    return rows


_ROWS = _spread(DETAILS)
_DETAIL_CLASS_S = np.array([CLASSES.index(detail.class_name) for detail, _, _ in _ROWS])
_DETAIL_ROLE_S = np.array([_ROLES.index(detail.role) for detail, _, _ in _ROWS])
_DETAIL_FACE_S = np.array([face for _, face, _ in _ROWS])
_DETAIL_ACROSS_S2 = np.array([side for _, _, side in _ROWS])
_DETAIL_HEIGHTS_S2 = np.array([detail.heights for detail, _, _ in _ROWS])
_DETAIL_COLOR_S3 = np.array([detail.color for detail, _, _ in _ROWS], np.float64)
_DETAIL_IS_LAMP_S = np.array([detail.is_lamp for detail, _, _ in _ROWS])
