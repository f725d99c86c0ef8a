"""The page of an audit: findings with clips to look at, sensors, provenance, balance; one file, no script."""

from __future__ import annotations

import base64
import html
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from e2e_perception.data.audit import Finding, Report
    from e2e_perception.data.shards import Dataset

MAX_PICTURES = 24  # of clips, from above; the worst findings have them
CELL_PX = 2  # of a picture's cell
Pictures = Mapping[tuple[str, str, int], str]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }
tr.error td:first-child { color: #c62828; font-weight: 600; }
tr.warning td:first-child { color: #b26a00; }
img { display: block; width: 24rem; image-rendering: pixelated; margin: .3rem 0; }
code { font-size: 12px; overflow-wrap: anywhere; }
.n { text-align: right; width: 6rem; } .bar { background: #4a7dbd; height: .8rem; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd; } }
"""


def as_page(
    report: Report,
    dataset: Path,
    recall: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    pictures: Pictures | None = None,
) -> str:
    """All that was found, self-contained.

    Args:
        report: Finished.
        dataset: For the commands that show a clip.
        recall: By slice and value, see `audit --bundle`.
        pictures: See `pictures_of`.
    """
    say = html.escape
    totals = Counter(finding.severity for finding in report.findings)
    gates = "".join(f"<li>{say(gate)}</li>" for gate in report.broken_gates)
    verdict = f"<p>Gates are broken:</p><ul>{gates}</ul>" if gates else "<p>No gate is broken.</p>"
    left = dict(pictures or {})  # each is shown once, however many findings are about its frame
    rows = "".join(
        _finding(f, dataset, left.pop((f.shard, f.clip_id, f.stamp_ns), None)) for f in report.findings
    )
    balance = "".join(_counts(name, counts) for name, counts in report.balance.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Audit of {say(dataset.name)}</title>
<style>{_STYLE}</style></head><body><h1>{say(str(dataset))}</h1>
<p>{report.clips} clips, {report.labelled_clips} of them labelled; digest {report.digest[:16]}…;
{totals["error"]} errors, {totals["warning"]} warnings, {totals["info"]} remarks.</p>
{verdict}<h2>Findings</h2>
<table><tr><th></th><th>check</th><th>finding</th><th>shard and clip</th><th>stamp [ns]</th></tr>
{rows}</table>
<h2>Sensors</h2>{_sensors(report)}
<h2>Where labels come from</h2>{_provenance(report)}
<h2>Balance</h2>{balance}{_recall(recall or {})}</body></html>
"""


def look_command(dataset: Path, finding: Finding) -> str:
    """The command that shows a finding's clip; empty if it is about all of a shard."""
    if not finding.clip_id:
        return ""
    clip = shlex.quote(f"{finding.shard}/{finding.clip_id}")
    return (
        f"e2e-perception review serve {shlex.quote(str(dataset))} --clip {clip} "
        "--reviewer NAME --out review.parquet"
    )


def pictures_of(report: Report, dataset: Dataset) -> dict[tuple[str, str, int], str]:
    """Frames of findings from above with their labels, as data addresses.

    Args:
        report: Whose findings are shown, the worst first, of at most `MAX_PICTURES` frames.
        dataset: That it is about.
    Returns:
        By shard, clip and stamp of the finding; shards that do not say their network's size have none.
    """
    from e2e_perception.data.review_clips import ReviewDataset
    from e2e_perception.data.review_pictures import BirdsEye, png

    opened = ReviewDataset.open(dataset.path)
    names = {(name.shard, name.clip_id): name for name in opened.names()}
    found: dict[tuple[str, str, int], str] = {}
    for finding in report.findings:
        name = names.get((finding.shard, finding.clip_id))
        key = (finding.shard, finding.clip_id, finding.stamp_ns)
        if name is None or key in found or not _is_sized(dataset, finding.shard):
            continue
        if len(found) >= MAX_PICTURES:
            break
        review = opened.read(name)
        at = np.flatnonzero(review.clip.stamps_ns_T == finding.stamp_ns)
        view = BirdsEye.of(review.network.grid)
        picture = view.draw(review, int(at[0]) if len(at) else 0, cell_px=CELL_PX, labels=True)
        found[key] = "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")
    return found


def _is_sized(dataset: Dataset, shard: str) -> bool:
    """Whether a shard says for which network its clips were made."""
    from e2e_perception.core.network_config import SIZES

    recipe = dataset.facts(shard).get("recipe")
    return isinstance(recipe, Mapping) and recipe.get("size") in SIZES


def _finding(finding: Finding, dataset: Path, picture: str | None) -> str:
    say = html.escape
    where = f"{say(finding.shard)}<br>{say(finding.clip_id)}" if finding.clip_id else say(finding.shard)
    if picture is not None:
        where += f'<img src="{picture}" alt="from above, the robot drives to the right">'
    command = look_command(dataset, finding)
    if command:
        where += f"<details><summary>look</summary><code>{say(command)}</code></details>"
    return (
        f'<tr class="{finding.severity}"><td>{finding.severity}</td><td>{say(finding.check)}</td>'
        f"<td>{say(finding.message)}</td><td>{where}</td><td>{finding.stamp_ns or ''}</td></tr>"
    )


def _sensors(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(shard)}</td><td>{html.escape(name)}</td>"
        f"<td>{html.escape(_in_words(figures))}</td></tr>"
        for shard, sensors in report.sensors.items()
        for name, figures in sensors.items()
    )
    head = "<tr><th>shard</th><th>sensor</th><th>clock, calibration and returns</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else "<p>Nothing is known of clocks and calibration.</p>"


def _in_words(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in figures.items())


def provenance_rows(report: Report) -> list[tuple[str, ...]]:
    """Source, labels, seen by a sensor, mean confidence, doubtful, unreviewed; the first row is of all."""
    return [
        (
            source,
            f"{of['labels']:,}",
            f"{of['seen_share']:.0%}",
            "–" if of["mean_confidence"] is None else f"{of['mean_confidence']:.2f}",
            f"{of['doubtful_share']:.0%}",
            f"{of['unreviewed_share']:.0%}",
        )
        for source, of in report.provenance.items()
    ]


PROVENANCE_HEAD = ("source", "labels", "seen", "confidence", "doubtful", "unreviewed")


def _provenance(report: Report) -> str:
    head = "".join(f"<th>{name}</th>" for name in PROVENANCE_HEAD)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in provenance_rows(report)
    )
    return f"<table><tr>{head}</tr>{rows}</table>" if rows else "<p>There are no labels.</p>"


def _recall(recall: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td><td class=n>{r['labels']:,}</td>"
        f"<td class=n>{r['recall']:.1%}</td></tr>"
        for name, values in recall.items()
        for value, r in values.items()
    )
    head = "<tr><th>of</th><th></th><th>labels</th><th>found</th></tr>"
    return f"<h2>Labels found</h2><table>{head}{rows}</table>" if rows else ""


def _counts(name: str, counts: Mapping[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td class=n>{count:,}</td>"
        f'<td><div class=bar style="width:{100 * count / total:.1f}%"></div></td></tr>'
        for key, count in counts.items()
    )
    return f"<h3>{html.escape(name)}</h3><table>{rows}</table>"
