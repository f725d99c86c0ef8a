"""What is odd about a dataset, before anybody trains on it.

Every finding says what was measured, where to look, and how bad it is; gates (`config/gates/*.yaml`) say
which figures must not be exceeded. Nothing is mended here.

Legend: T frames, L label slots.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.near_duplicates import HashIndex, perceptual_hash
from e2e_perception.data.sensor_checks import SensorChecks
from e2e_perception.data.shards import Dataset
from e2e_perception.data.slices import DISTANCES, clip_slices, in_bin
from e2e_perception.data.splits import Recording, overlap_s, relation

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
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
DUPLICATE_DISTANCE = 0.5  # [m] between centres of one class
SWITCH_DISTANCE = 1.5  # [m] from where one identity ends to where another begins
FINGERPRINT = 8  # cells per side of a clip's fingerprint


class Gates(BaseModel):
    """Figures that must not be exceeded; what is left out is not judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_findings: dict[str, int] = Field(
        default_factory=dict, description="By check, or by severity: how many findings are let pass."
    )
    min_labelled_share: float = Field(0.0, ge=0, le=1, description="Of clips.")
    min_class_share: dict[str, float] = Field(default_factory=dict, description="Of labels, by class.")


@dataclass(frozen=True)
class Finding:
    """Something odd.

    Attributes:
        check: Which check found it.
        severity: `error`: do not train on it; `warning`: look; `info`: know.
        message: What was got and what was expected.
        shard: Where.
        clip_id: A clip to look at; empty: all of the shard.
        stamp_ns: A frame to look at [ns]; 0: none in particular.
    """

    check: str
    severity: Severity
    message: str
    shard: str
    clip_id: str = ""
    stamp_ns: int = 0


@dataclass
class Report:
    """All of an audit.

    Attributes:
        digest: Of the dataset.
        findings: The worst first.
        balance: Counts of labels by `class` and `distance`, of clips by `split` and as `clip_slices` says.
        clips, labelled_clips: How many.
        sensors: By shard and sensor, what was found out of its clock and its calibration.
        broken_gates: In words; empty: it may be trained on.
    """

    digest: str
    findings: list[Finding] = field(default_factory=list)
    balance: dict[str, dict[str, int]] = field(default_factory=dict)
    sensors: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    clips: int = 0
    labelled_clips: int = 0
    broken_gates: list[str] = field(default_factory=list)


def audit(dataset: Dataset, gates: Gates | None = None) -> Iterator[tuple[int, int, Report]]:
    """Look at every clip.

    Args:
        dataset: To look at.
        gates: What must hold.
    Yields:
        Clips done, clips in all, and the report, which is complete when both are equal.
    Raises:
        InputError: If a shard is missing or damaged.
    """
    stores = [(store.path.name, store) for store in dataset.stores()]
    total = sum(len(store) for _, store in stores)
    report = Report(dataset.digest)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    prints: dict[bytes, tuple[str, str, str]] = {}
    hashes = HashIndex()
    for name, store in stores:
        facts = dataset.facts(name)
        report.findings += of_recording(name, facts)
        sensors = SensorChecks.of(facts)
        for index, row in enumerate(store.rows):
            clip = store.read(index)
            clip_id = str(row["clip_id"])
            report.clips += 1
            report.labelled_clips += clip.labels_valid
            report.findings += [
                Finding(check, severity, message, name, clip_id, stamp_ns)
                for check, severity, message, stamp_ns in of_labels(clip)
            ]
            if sensors is not None:
                sensors.add(clip)
            _count(counts, clip, row, facts)
            report.findings += _leaks(prints, hashes, clip, name, clip_id, str(row["split"]))
            yield report.clips - 1, total, report
        if sensors is not None:
            report.findings += [
                Finding(check, "warning", message, name) for check, message in sensors.findings()
            ]
            report.sensors[name] = sensors.figures()
    report.findings += _shared_drives(
        dataset.recordings(), {name: str(store.rows[0]["split"]) for name, store in stores if store.rows}
    )
    report.balance = {key: dict(sorted(counter.items())) for key, counter in sorted(counts.items())}
    report.findings.sort(
        key=lambda f: (SEVERITIES.index(f.severity), f.check, f.shard, f.clip_id, f.stamp_ns)
    )
    report.broken_gates = broken(report, gates or Gates())
    yield total, total, report


# ------------------------------------------------------------------ recordings


def of_recording(shard: str, facts: Mapping[str, Any]) -> list[Finding]:
    """Timing, odometry, labels and losses of one recording, from `shard.json`."""
    found: list[Finding] = []

    def say(check: str, severity: Severity, message: str, stamp_ns: int = 0) -> None:
        found.append(Finding(check, severity, message, shard, "", stamp_ns))

    for name, timing in {**facts.get("timing", {}), "odometry": facts.get("odometry", {})}.items():
        count = int(timing.get("count", 0))
        if count == 0:
            continue
        if timing.get("jitter_ms") == 0.0 and count > 10:
            period = timing["period_ms"]
            say(
                "synthetic_stamps",
                "warning",
                f"{name}: all stamps are {period:g} ms apart to the nanosecond; no clock measured that",
            )
        if timing.get("latency_jitter_ms") == 0.0 and count > 10:
            say(
                "synthetic_arrivals",
                "info",
                f"{name}: arrives {timing['latency_ms']:g} ms after its stamp, always; how long the robot "
                "waited is not in this recording",
            )
        if timing.get("latency_ms", 0.0) < 0.0:
            say(
                "clock",
                "error",
                f"{name}: arrives {-timing['latency_ms']:g} ms before it was measured; its clock is ahead",
            )
        if timing.get("backwards", 0):
            say("clock", "error", f"{name}: {timing['backwards']} of {count} stamps go backwards")
        if timing.get("repeated", 0):
            say("clock", "warning", f"{name}: {timing['repeated']} of {count} stamps repeat the one before")
        if "longest_gap_ms" in timing and timing["longest_gap_ms"] > 2.5 * timing["period_ms"]:
            say(
                "gap",
                "warning",
                f"{name}: nothing for {timing['longest_gap_ms']:g} ms, one is due every "
                f"{timing['period_ms']:g} ms",
                int(timing["longest_gap_at_ns"]),
            )
        if timing.get("jitter_ms", 0.0) > 0.25 * timing.get("period_ms", np.inf):
            say(
                "jitter",
                "warning",
                f"{name}: intervals differ from {timing['period_ms']:g} ms by {timing['jitter_ms']:g} ms",
            )
    missing = int(facts.get("odometry", {}).get("without_covariance", 0))
    if missing:
        say("covariance", "info", f"odometry: {missing} messages without a covariance")
    if not facts.get("label_sources"):
        say("labels", "warning", "no labels: detection, tracking and prediction learn nothing from it")
    for reason, count in facts.get("left_out", {}).items():
        say("left_out", "info", f"{count} frames or labels left out: {reason.replace('_', ' ')}")
    for warning in facts.get("warnings", []):
        lost = "cut off or damaged" in warning or "left out" in warning or "can be read" in warning
        say("recording", "warning" if lost else "info", str(warning))
    return found


# ------------------------------------------------------------------ labels

Told = tuple[str, Severity, str, int]


def of_labels(clip: Clip) -> list[Told]:
    """Identities, sizes, motion, duplicates and conventions of a clip's labels."""
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
    told += _duplicates(clip)
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


def _duplicates(clip: Clip) -> Iterator[Told]:
    """Pairs of one class at one place; each once, however many frames it lasts."""
    pairs: dict[tuple[int, int], list[tuple[int, float, int]]] = defaultdict(list)
    for t in range(len(clip)):
        rows = np.flatnonzero(clip.ids_TB[t] >= 0)
        places, classes = clip.boxes_TB10[t, rows][:, [X, Y]], clip.class_ids_TB[t, rows]
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
        near = np.triu((gaps < DUPLICATE_DISTANCE) & (classes[:, None] == classes[None]), k=1)
        for a, b in zip(*near.nonzero(), strict=True):
            first, second = sorted(int(clip.ids_TB[t, rows[i]]) for i in (a, b))
            pairs[first, second].append((t, float(gaps[a, b]), int(classes[a])))
    for (first, second), found in pairs.items():
        t, gap, class_id = min(found, key=lambda item: item[1])
        often = f"in {len(found)} of {len(clip)} frames"
        message = f"{CLASSES[class_id]} {first} and {second} are {gap:.1f} m apart, {often}"
        yield "duplicate", "error", message, int(clip.stamps_ns_T[t])


# ------------------------------------------------------------------ balance, leaks, gates


def _count(
    counts: dict[str, Counter[str]], clip: Clip, row: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    counts["split"][str(row["split"])] += 1
    for name, value in clip_slices(row, facts).items():
        counts[name][value] += 1
    if not clip.labels_valid:
        return
    t, slot = np.nonzero(clip.weights_TB > 0.0)
    distance = np.hypot(clip.boxes_TB10[t, slot, X], clip.boxes_TB10[t, slot, Y])
    for class_id, far in zip(clip.class_ids_TB[t, slot].tolist(), distance.tolist(), strict=True):
        counts["class"][CLASSES[class_id]] += 1
        counts["distance"][in_bin(far, DISTANCES, "m")] += 1


def fingerprint(clip: Clip) -> bytes | None:
    """The same for clips that show the same: coarse pictures and returns of the first frame; None: none."""
    if not any(clip.inputs[name][0].any() for name in ("images", "lidar_raster")):
        return None
    parts: list[NDArray[np.float64]] = []
    for name in ("images", "lidar_raster"):
        values = clip.inputs[name][0].astype(np.float64)
        if name == "images":
            values = values.mean(axis=-1)
        else:
            values = values.max(axis=0)[None]
        y, x = values.shape[-2] // FINGERPRINT, values.shape[-1] // FINGERPRINT
        cells = values[:, : y * FINGERPRINT, : x * FINGERPRINT].reshape(-1, FINGERPRINT, y, FINGERPRINT, x)
        coarse = cells.mean(axis=(2, 4))
        spread = coarse.max() - coarse.min()
        parts.append(np.round((coarse - coarse.min()) / max(float(spread), 1e-9) * 15.0))
    return hashlib.sha256(
        np.concatenate([part.ravel() for part in parts]).astype(np.uint8).tobytes()
    ).digest()


def _leaks(
    prints: dict[bytes, tuple[str, str, str]],
    hashes: HashIndex,
    clip: Clip,
    shard: str,
    clip_id: str,
    split: str,
) -> Iterator[Finding]:
    stamp_ns = int(clip.stamps_ns_T[0])
    bits = perceptual_hash(clip)
    near = None if bits is None else hashes.nearest(bits, lambda name: name[2] != split)
    if bits is not None:
        hashes.add(bits, (shard, clip_id, split))
    key = fingerprint(clip)
    if key is None:
        return  # who sees nothing is like everybody who sees nothing
    if key in prints:
        other_shard, other_id, other_split = prints[key]
        where = f"shows what {other_id} of {other_shard} shows"
        if split != other_split:
            message = f"{where}, which is in split {other_split}; this one is in {split}"
            yield Finding("leakage", "error", message, shard, clip_id, stamp_ns)
            return
        yield Finding("repetition", "info", where, shard, clip_id, stamp_ns)
    else:
        prints[key] = (shard, clip_id, split)
    if near is not None and bits is not None:
        differ, (other_shard, other_id, other_split) = near
        message = (
            f"shows nearly what {other_id} of {other_shard} shows ({differ} of {len(bits)} bits differ), "
            f"which is in split {other_split}; this one is in {split}"
        )
        yield Finding("near_duplicate", "warning", message, shard, clip_id, stamp_ns)


def _shared_drives(recordings: Sequence[Recording], split_of_shard: Mapping[str, str]) -> Iterator[Finding]:
    """Pairs of recordings of one time or place on two sides."""
    for a, b in combinations(recordings, 2):
        sides = split_of_shard.get(a.shard), split_of_shard.get(b.shard)
        why = relation(a, b) if None not in sides and sides[0] != sides[1] else ""
        if why:
            message = (
                f"{a.shard} is in split {sides[0]}, this one in {sides[1]}, and they share: {why}; "
                "`e2e-perception dataset split` puts them on one side"
            )
            yield Finding("shared_drive", "error" if overlap_s(a, b) > 0.0 else "warning", message, b.shard)


def broken(report: Report, gates: Gates) -> list[str]:
    """Gates that a finished report breaks, in words."""
    found = Counter(finding.check for finding in report.findings)
    found.update(Counter(str(finding.severity) for finding in report.findings))
    words = [
        f"{found[name]} findings of {name}, at most {most} are let pass"
        for name, most in gates.max_findings.items()
        if found[name] > most
    ]
    share = report.labelled_clips / report.clips if report.clips else 0.0
    if share < gates.min_labelled_share:
        words.append(f"{share:.0%} of clips are labelled, at least {gates.min_labelled_share:.0%} have to be")
    classes = report.balance.get("class", {})
    labels = sum(classes.values())
    for name, least in gates.min_class_share.items():
        got = classes.get(name, 0) / labels if labels else 0.0
        if got < least:
            words.append(f"{got:.1%} of labels are of class {name}, at least {least:.1%} have to be")
    return words
