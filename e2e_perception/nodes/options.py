"""Parameters of the player and the recorder; like the stack's, declared, checked and documented from here."""

from __future__ import annotations

from e2e_perception.core.config import Section, tunable


class ReplayOptions(Section):
    """What `replay_node` plays, and how."""

    bag: str = tunable("", "rosbag2 directory, or a single .mcap or .db3 file.", read_only=True)
    rate: float = tunable(1.0, "Bag seconds per second.", ge=0.01, le=100, read_only=True)
    loop: bool = tunable(False, "Start again at the end; time then jumps back.", read_only=True)
    start: float = tunable(0.0, "Skip this much of the bag.", unit="s", ge=0, le=1e6, read_only=True)
    duration: float = tunable(
        0.0, "Play this much of the bag; 0: to its end.", unit="s", ge=0, le=1e6, read_only=True
    )
    clock: bool = tunable(True, "Publish the bag's time on /clock, for use_sim_time.", read_only=True)
    clock_rate: float = tunable(
        100.0, "Ticks of /clock between messages; 0: only with each message.",
        unit="Hz", ge=0, le=1000, read_only=True,
    )  # fmt: skip
    topics: list[str] = tunable([], "Play these topics only; empty: all.", read_only=True)
    remap: list[str] = tunable([], "Publish topics under other names, each `/from:=/to`.", read_only=True)
    wait_for_subscribers: int = tunable(
        0, "Begin when so many of the topics have a subscriber.", ge=0, le=1000, read_only=True
    )
    wait_timeout: float = tunable(
        30.0, "End with an error when they are not there after this.", unit="s", ge=0, le=3600, read_only=True
    )
    shutdown_at_end: bool = tunable(True, "End the process at the end of the bag.", read_only=True)


class RecorderOptions(Section):
    """What `recorder_node` records, and where."""

    out: str = tunable("", "Directory of the bag to write; must not exist.", read_only=True)
    source: str = tunable("perception_node", "Node whose outputs are recorded.", read_only=True)
    topics: list[str] = tunable(
        [], "Further topics; each is recorded as soon as its type is known.", read_only=True
    )
