"""What a run leaves behind: a bag of its outputs, and the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from e2e_perception.cli.bag_stream import BagStream
from e2e_perception.cli.console import progress_bar
from e2e_perception.cli.report_data import ReportData
from e2e_perception.core.errors import InputError
from e2e_perception.core.messages import (
    HEALTH_TYPE,
    MARKERS_TYPE,
    PATH_TYPE,
    PLAN_TYPE,
    TRACKS_TYPE,
    health_message,
    markers_message,
    path_message,
    plan_message,
    tracks_message,
)
from e2e_perception.core.results import FrameResult
from e2e_perception.data.bags import BagWriter
from e2e_perception.evaluation.report import write_report

# As the node publishes them.
TRACKS, PLAN, HEALTH, PATH, MARKERS = (
    f"/perception_node/{n}" for n in ("tracks", "plan", "health", "path", "markers")
)


class OutputBag:
    """Writes results as the messages that the node would have published."""

    def __init__(self, path: Path, frame_id: str) -> None:
        self._bag = BagWriter(path)
        self._frame_id = frame_id

    def __enter__(self) -> OutputBag:
        self._bag.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bag.__exit__(kind, error, trace)

    def write(self, result: FrameResult, now_ns: int) -> None:
        """Write everything of one result, as published at `now_ns`."""
        make, frame, stamp_ns = self._bag.make, self._frame_id, result.stamp_ns
        if result.tracks is not None:
            message = tracks_message(make, result.tracks, frame)
            self._bag.write(TRACKS, TRACKS_TYPE, now_ns, message)
        if result.plan is not None:
            message = plan_message(make, result.plan, result.health, frame)
            self._bag.write(PLAN, PLAN_TYPE, now_ns, message)
            self._bag.write(PATH, PATH_TYPE, now_ns, path_message(make, result.plan, frame))
        state = result.health.state
        markers = markers_message(make, stamp_ns, frame, tracks=result.tracks, plan=result.plan, state=state)
        self._bag.write(MARKERS, MARKERS_TYPE, now_ns, markers)
        self._bag.write(HEALTH, HEALTH_TYPE, now_ns, health_message(make, result.health, stamp_ns, frame))


def refuse_own_results(bag: Path, out: Path) -> None:
    """Refuse to read a bag that lies among the results which a run is about to replace.

    Raises:
        InputError: If `bag` is `out`, or anywhere in it.
    """
    if bag.resolve().is_relative_to(out.resolve()):
        raise InputError(f"bag {bag} lies in --out {out}, whose content is replaced; name another --out")


def remove_outputs(path: Path) -> None:
    """Remove the bag of an earlier run, and nothing else.

    Raises:
        InputError: If something other than a bag is there.
    """
    if not path.exists():
        return
    foreign = (
        [p.name for p in path.iterdir() if p.suffix not in (".mcap", ".yaml")]
        if path.is_dir()
        else [path.name]
    )
    if foreign:
        raise InputError(f"{path} holds {', '.join(foreign)}, which no run wrote; name another --out")
    shutil.rmtree(path)


def write_run_report(
    path: Path, stream: BagStream, results: Sequence[FrameResult], summary: Mapping[str, Any]
) -> None:
    """Write `report.html`, reading the recording once more for what the stack saw.

    Args:
        path: File to write.
        stream: The recording.
        results: All results, silences included.
        summary: Content of `summary.json`, with `bundle`, `backend`, `rig` and `mode`.
    """
    data = ReportData(results, stream.rig)
    with progress_bar("writing the report", stream.num_messages) as progress:
        for event in stream.events(progress):
            data.take(event)
    bundle_name = summary["bundle"].split()[0]
    name = str(summary.get("scenario", stream.path.name))
    facts = {
        "scenario" if "scenario" in summary else "bag": f"{name}, {stream.duration_s:.1f} s",
        **{key: str(summary[key]) for key in ("bundle", "backend", "rig", "mode")},
    }
    write_report(
        path,
        data.frames(),
        rig=data.rig,
        title=f"{name} through {bundle_name}",
        facts=facts,
        summary=summary,
    )
