"""Parameters of player, recorder and simulator; like the stack's, declared, checked, documented from here."""

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


class SimOptions(Section):
    """What `sim_node` drives, and how."""

    scenario: str = tunable(
        "two_way+crossing/3",
        "`family/seed` or `family/seed@difficulty`, see docs/driving.md.",
        read_only=True,
    )
    seed: int = tunable(-1, "In place of the scenario's; -1: keep that.", ge=-1, le=10**9, read_only=True)
    rig: str = tunable(
        "tiny",
        "Rig file, or the name of a shipped rig; the same as the stack's. A camera whose topic ends in "
        "`/compressed` sends JPEG, any other raw pictures.",
        read_only=True,
    )
    degradation: str = tunable(
        "", "What the sensors suffer: a file, or a shipped degradation's name.", read_only=True
    )
    planner: str = tunable("perception_node", "Node whose `plan` is driven.", read_only=True)
    out: str = tunable("", "Directory for episode.html and outcome.json; empty: none.", read_only=True)
    rate: float = tunable(
        1.0, "Simulated seconds per second at most; 0: as fast as it goes.", ge=0, le=100, read_only=True
    )
    lockstep: bool = tunable(
        True,
        "Let simulated time stand still until the plans of frames are there, so that the drive does not "
        "depend on the machine; false: a late plan is late.",
        read_only=True,
    )
    plan_timeout: float = tunable(
        10.0, "Lockstep: how long to wait for a plan; then time goes on without it.",
        unit="s", ge=0.1, le=600, read_only=True,
    )  # fmt: skip
    start_timeout: float = tunable(
        60.0, "End with an error when the planner is not active, or not everybody listens, after this.",
        unit="s", ge=0, le=3600, read_only=True,
    )  # fmt: skip
    wait_for_subscribers: int = tunable(
        1, "Begin when each sensor's topic has so many subscribers.", ge=1, le=100, read_only=True
    )
    duration: float = tunable(
        0.0, "End the episode after this; 0: when it is over.", unit="s", ge=0, le=1e4, read_only=True
    )
    shutdown_at_end: bool = tunable(True, "End the process with the episode.", read_only=True)
