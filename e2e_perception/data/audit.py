"""What is odd about a dataset, before anybody trains on it.

Every finding says what was measured, where to look, and how bad it is; gates (`config/gates/*.yaml`) say
which figures must not be exceeded. Nothing is mended here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.data.label_checks import Severity, X, Y, of_labels
from e2e_perception.data.label_doubles import LabelDoubles
from e2e_perception.data.label_provenance import LabelProvenance
from e2e_perception.data.near_duplicates import HashIndex, perceptual_hash
from e2e_perception.data.sensor_checks import SensorChecks
from e2e_perception.data.sensor_presence import absent_sensors
from e2e_perception.data.shards import Dataset, read_labels
from e2e_perception.data.slices import DISTANCES, clip_slices, in_bin
from e2e_perception.data.splits import Recording, overlap_s, possible_pairs, relation
from e2e_perception.data.timing import has_synthetic_arrivals, has_synthetic_stamps

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
CHECKS = (
    "synthetic_stamps", "synthetic_arrivals", "clock", "gap", "jitter", "covariance", "labels", "left_out",
    "recording", "absent_sensor", "identity", "duplicate", "jump", "switch", "class_change", "size",
    "acceleration", "velocity", "heading", "clock_offset", "calibration", "box_without_returns", "box_offset",
    "shared_drive", "near_duplicate", "leakage", "repetition",
)  # fmt: skip
# Checks of a whole recording whose findings a clip shows.
SHOWN_BY_A_CLIP = frozenset(
    "clock gap jitter clock_offset calibration box_without_returns box_offset shared_drive".split()
)
FINGERPRINT = 8  # cells per side of a clip's fingerprint


class Gates(BaseModel):
    """Figures that must not be exceeded; what is left out is not judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_findings: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="By check, or by severity: how many findings are let pass."
    )
    min_labelled_share: float = Field(0.0, ge=0, le=1, description="Of clips.")
    min_class_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="Of labels, by class; together at most 1."
    )
    max_doubled_share: float = Field(
        1.0, ge=0, le=1, description="Of labels, that stand in another of their class; see `duplicate`."
    )

    @field_validator("max_findings")
    @classmethod
    def _of_checks(cls, value: dict[str, int]) -> dict[str, int]:
        unknown = sorted(set(value) - {*CHECKS, *SEVERITIES})
        if unknown:
            raise ValueError(
                f"there is no check {unknown[0]!r}; expected {', '.join(SEVERITIES)} or one of "
                f"{', '.join(CHECKS)}"
            )
        return value

    @field_validator("min_class_share")
    @classmethod
    def _of_classes(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(CLASSES))
        if unknown:
            raise ValueError(f"there is no class {unknown[0]!r}; expected some of {', '.join(CLASSES)}")
        if math.fsum(value.values()) > 1.0 + 1e-9:  # decimal shares are not exact in binary
            raise ValueError(f"shares sum up to {math.fsum(value.values()):g}; expected at most 1")
        return value


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

    def __post_init__(self) -> None:
        """Gates name checks, so that all of them are listed."""
        assert self.check in CHECKS, self.check


@dataclass
class Report:
    """All of an audit.

    Attributes:
        digest: Of the dataset.
        findings: The worst first.
        balance: Counts of labels by `class` and `distance`, of clips by `split` and as `clip_slices` says.
        clips, labelled_clips: How many.
        sensors: By shard and sensor, what was found out of its clock and its calibration.
        provenance: By source, see `LabelProvenance`.
        doubled_share: Of labels, that stand in another of their class.
        broken_gates: In words; empty: it may be trained on.
    """

    digest: str
    findings: list[Finding] = field(default_factory=list)
    balance: dict[str, dict[str, int]] = field(default_factory=dict)
    sensors: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    doubled_share: float = 0.0
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
    provenance = LabelProvenance()
    labels = doubled = 0
    for name, store in stores:
        facts = dataset.facts(name)
        report.findings += [_with_clip(finding, store.rows) for finding in of_recording(name, facts)]
        report.findings += [
            Finding("absent_sensor", severity, message, name, clip_id)
            for severity, message, clip_id in absent_sensors(store.rows, facts)
        ]
        provenance.add(read_labels(dataset.directory(name)))
        doubles = LabelDoubles()
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
            doubles.add(clip, clip_id)
            if sensors is not None:
                sensors.add(clip)
            _count(counts, clip, row, facts)
            report.findings += _leaks(prints, hashes, clip, name, clip_id, str(row["split"]))
            yield report.clips - 1, total, report
        report.findings += [
            Finding("duplicate", "warning", pair.message, name, pair.clip_id, pair.stamp_ns)
            for pair in doubles.pairs()
        ]
        labels, doubled = labels + doubles.labels, doubled + doubles.doubled
        if sensors is not None:
            report.findings += [
                _with_clip(Finding(check, "warning", message, name), store.rows)
                for check, message in sensors.findings()
            ]
            report.sensors[name] = sensors.figures()
    rows = {name: store.rows for name, store in stores if store.rows}
    report.findings += [
        _with_clip(finding, rows[finding.shard])
        for finding in _shared_drives(
            dataset.recordings(), {name: str(own[0]["split"]) for name, own in rows.items()}
        )
    ]
    report.provenance = provenance.figures()
    report.doubled_share = doubled / max(labels, 1)
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
        if has_synthetic_stamps(timing):
            period = timing["period_ms"]
            say(
                "synthetic_stamps",
                "warning",
                f"{name}: all stamps are {period:g} ms apart to the nanosecond; no clock measured that",
            )
        if has_synthetic_arrivals(timing):
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
    left_out = dict(facts.get("left_out", {}))
    uncovered = left_out.pop("clips_not_covered", 0)
    if uncovered:
        say(
            "labels",
            "warning",
            f"{uncovered} clips count as unlabelled: labels do not cover all their frames",
        )
    for reason, count in left_out.items():
        say("left_out", "info", f"{count} frames or labels left out: {reason.replace('_', ' ')}")
    for warning in facts.get("warnings", []):
        lost = "cut off or damaged" in warning or "left out" in warning or "can be read" in warning
        say("recording", "warning" if lost else "info", str(warning))
    return found


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
    for i, j in possible_pairs(recordings):
        a, b = recordings[i], recordings[j]
        sides = split_of_shard.get(a.shard), split_of_shard.get(b.shard)
        why = relation(a, b) if None not in sides and sides[0] != sides[1] else ""
        if why:
            message = (
                f"{a.shard} is in split {sides[0]}, this one in {sides[1]}, and they share: {why}; "
                "`e2e-perception dataset split` puts them on one side"
            )
            same_time = overlap_s(a, b) > 0.0
            yield Finding(
                "shared_drive",
                "error" if same_time else "warning",
                message,
                b.shard,
                stamp_ns=max(a.start_ns, b.start_ns) if same_time else 0,
            )


def _with_clip(finding: Finding, rows: Sequence[Mapping[str, Any]]) -> Finding:
    """A finding of a whole recording with a clip to look at: the one nearest its stamp, else the first.

    Where it is of labels, of the clips that are labelled.
    """
    if finding.check not in SHOWN_BY_A_CLIP:
        return finding
    if finding.check.startswith("box_"):
        rows = [row for row in rows if row["labels_valid"] is not False]

    def away_ns(row: Mapping[str, Any]) -> int:
        first_ns = int(row["first_stamp_ns"])
        last_ns = first_ns if row["last_stamp_ns"] is None else int(row["last_stamp_ns"])
        return max(first_ns - finding.stamp_ns, finding.stamp_ns - last_ns, 0)

    shown = min(rows, key=away_ns, default=None) if finding.stamp_ns else next(iter(rows), None)
    return finding if shown is None else replace(finding, clip_id=str(shown["clip_id"]))


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
    if report.doubled_share > gates.max_doubled_share:
        words.append(
            f"{report.doubled_share:.1%} of labels stand in another of their class, at most "
            f"{gates.max_doubled_share:.1%} are let pass"
        )
    classes = report.balance.get("class", {})
    labels = sum(classes.values())
    for name, least in gates.min_class_share.items():
        got = classes.get(name, 0) / labels if labels else 0.0
        if got < least:
            words.append(f"{got:.1%} of labels are of class {name}, at least {least:.1%} have to be")
    return words
