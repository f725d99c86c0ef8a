"""What holds of the frame assembler for any stream of messages."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.runtime.assembler import FrameAssembler, SensorSync

MS = 1_000_000
QUEUE_SIZE = 5
SYNCS = (
    SensorSync("lidar", 0, 40 * MS),
    SensorSync("camera", 15 * MS, 50 * MS),
    SensorSync("radar", -10 * MS, 90 * MS),
)
Event = tuple[SensorMessage, int]  # a message, and the time of the poll after it (or -1: none)


def make_assembler(queue_size: int = QUEUE_SIZE) -> FrameAssembler:
    return FrameAssembler(
        SYNCS,
        anchors=("lidar", "camera"),
        max_wait_ns=60 * MS,
        anchor_timeout_ns=250 * MS,
        queue_size=queue_size,
    )


@st.composite
def hostile_streams(draw: st.DrawFn, *, restarts: bool = True) -> list[SensorMessage]:
    """Duplicates, stragglers and pauses, and if wanted jumps of stamps and arrival clock, in any mixture."""
    kinds = ["next"] * 12 + ["duplicate", "straggler", "pause"]
    if restarts:
        kinds += ["clock_back", "stamps_back"]
    now_ms = draw(st.integers(0, 5000))
    messages: list[SensorMessage] = []
    for _ in range(draw(st.integers(1, 80))):
        kind = draw(st.sampled_from(kinds))
        now_ms += draw(st.integers(0, 60))
        sensor = draw(st.sampled_from(["lidar", "camera", "radar"]))
        stamp_ns = (now_ms - draw(st.integers(0, 120))) * MS
        if kind == "duplicate" and messages:
            sensor, stamp_ns = messages[-1].sensor, messages[-1].stamp_ns
        elif kind == "straggler":
            stamp_ns -= draw(st.integers(100, 800)) * MS
        elif kind == "clock_back":
            now_ms -= draw(st.integers(1, 4000))
        elif kind == "stamps_back":
            stamp_ns -= draw(st.integers(1000, 4000)) * MS
        elif kind == "pause":
            now_ms += draw(st.integers(200, 3000))
        messages.append(SensorMessage(sensor, stamp_ns, now_ms * MS, len(messages)))
    return messages


@st.composite
def healthy_streams(draw: st.DrawFn) -> list[SensorMessage]:
    """Sensors at their own rates with jitter, latency and losses; the lidar, the anchor, never pauses."""
    messages: list[SensorMessage] = []
    for name, low, high in (("lidar", 80, 120), ("camera", 60, 110), ("radar", 50, 250)):
        period_ms = draw(st.integers(low, high))
        latency_ms = draw(st.integers(0, 90))
        num = draw(st.integers(0, 2000)) // period_ms if name != "lidar" else 2000 // period_ms
        jitters = draw(st.lists(st.integers(0, 25), min_size=num, max_size=num))
        lost = draw(st.sets(st.integers(0, 40), max_size=8)) if name != "lidar" else set()
        for k, jitter_ms in enumerate(jitters):
            if k not in lost:
                stamp_ms = 1000 + k * period_ms + jitter_ms // 2
                arrival_ms = 1000 + k * period_ms + jitter_ms + latency_ms
                messages.append(SensorMessage(name, stamp_ms * MS, arrival_ms * MS, None))
    return sorted(messages, key=lambda m: (m.arrival_ns, m.sensor))


def run(
    assembler: FrameAssembler, messages: list[SensorMessage], *, timer: bool = True, poll: bool = True
) -> list[tuple[int, AssembledFrame]]:
    """All frames with their epoch."""
    frames: list[tuple[int, AssembledFrame]] = []

    def collect(now_ns: int) -> None:
        # The epoch may rise within the call: nothing of the old one is returned after that.
        found = assembler.poll(now_ns)
        frames.extend((assembler.epoch, frame) for frame in found)

    for message in messages:
        while timer and (due := assembler.next_deadline_ns()) is not None and due < message.arrival_ns:
            collect(due)
        assembler.push(message)
        if poll:
            collect(message.arrival_ns)
    return frames


def finish(assembler: FrameAssembler, messages: list[SensorMessage]) -> list[tuple[int, AssembledFrame]]:
    frames = assembler.poll(messages[-1].arrival_ns + 10_000 * MS) if messages else []
    return [(assembler.epoch, frame) for frame in frames]


def content(frames: list[tuple[int, AssembledFrame]]) -> list[tuple[object, ...]]:
    """A frame without the time of its release."""
    return [(epoch, f.stamp_ns, f.anchor, f.messages, f.missing, f.sequence) for epoch, f in frames]


@given(hostile_streams())
@settings(deadline=None, max_examples=150)
def test_stamps_rise_strictly_within_an_epoch_and_releases_are_in_sequence(
    messages: list[SensorMessage],
) -> None:
    assembler = make_assembler()
    frames = run(assembler, messages) + finish(assembler, messages)
    for (epoch_a, a), (epoch_b, b) in zip(frames, frames[1:], strict=False):
        assert epoch_a <= epoch_b
        assert a.sequence < b.sequence
        if epoch_a == epoch_b:
            assert a.stamp_ns < b.stamp_ns
            assert a.emitted_ns <= b.emitted_ns


@given(hostile_streams())
@settings(deadline=None, max_examples=150)
def test_every_message_is_used_or_dropped_or_pending(messages: list[SensorMessage]) -> None:
    assembler = make_assembler()
    frames: list[tuple[int, AssembledFrame]] = []
    received: Counter[str] = Counter()
    for message in messages:
        frames += run(assembler, [message])
        received[message.sensor] += 1
        for name, counts in assembler.counts().items():
            assert counts.received == received[name]
            assert counts.pending >= 0
    frames += finish(assembler, messages)
    # An independent count: the distinct payloads that were seen in frames.
    used: dict[str, set[object]] = {sync.name: set() for sync in SYNCS}
    for _, frame in frames:
        for name, message in frame.messages.items():
            used[name].add(message.payload)
    assembler.reset()
    for name, counts in assembler.counts().items():
        assert counts.used == len(used[name])
        assert counts.pending == 0
        assert counts.received == counts.used + sum(counts.dropped.values())


@given(hostile_streams(), st.booleans(), st.integers(2, 6))
@settings(deadline=None, max_examples=150)
def test_memory_is_bounded_even_if_nobody_polls(
    messages: list[SensorMessage], poll: bool, queue_size: int
) -> None:
    assembler = make_assembler(queue_size)
    for message in messages:
        run(assembler, [message], timer=poll, poll=poll)
        for counts in assembler.counts().values():
            # Its queue, the frames it anchors that wait, and one message held as suspect of a restart.
            assert counts.pending <= 2 * queue_size + 1
        assert all(len(sensor.refs) == len(sensor.entries) <= queue_size for sensor in assembler._all)
        assert len(assembler._waiting) <= queue_size
        assert len(assembler._ready) <= 2 * queue_size
    if not poll:
        counts_without_polls = assembler.counts().values()
        assembler.reset()
        assert sum(c.received for c in counts_without_polls) == len(messages)
        # Frames that nobody collected do not count as used.
        assert all(c.used == 0 for c in assembler.counts().values())


@given(hostile_streams())
@settings(deadline=None, max_examples=150)
def test_the_same_arrivals_give_the_same_frames(messages: list[SensorMessage]) -> None:
    first, second = make_assembler(), make_assembler()
    assert run(first, messages) == run(second, messages)
    assert first.counts() == second.counts()


@given(hostile_streams(restarts=False))
@settings(deadline=None, max_examples=150)
def test_frames_do_not_depend_on_how_often_one_polls(messages: list[SensorMessage]) -> None:
    often, rarely = make_assembler(), make_assembler()
    assert content(run(often, messages)) == content(run(rarely, messages, timer=False))
    assert often.counts() == rarely.counts()


@given(hostile_streams())
@settings(deadline=None, max_examples=150)
def test_matches_are_within_tolerance_of_the_offset_and_each_sensor_is_matched_or_explained(
    messages: list[SensorMessage],
) -> None:
    assembler = make_assembler()
    sync_of = {sync.name: sync for sync in SYNCS}
    for _, frame in run(assembler, messages) + finish(assembler, messages):
        assert frame.messages[frame.anchor].stamp_ns == frame.stamp_ns
        assert frame.messages.keys() | frame.missing.keys() == sync_of.keys()
        assert not frame.messages.keys() & frame.missing.keys()
        assert set(frame.missing.values()) <= {"silent", "late", "out_of_tolerance"}
        for name, message in frame.messages.items():
            sync = sync_of[name]
            expected_ns = frame.stamp_ns + sync.offset_ns - sync_of[frame.anchor].offset_ns
            if name != frame.anchor:
                assert abs(message.stamp_ns - expected_ns) <= sync.tolerance_ns


@given(hostile_streams())
@settings(deadline=None, max_examples=150)
def test_no_frame_stays_beyond_its_deadline(messages: list[SensorMessage]) -> None:
    assembler = make_assembler()
    for _, frame in run(assembler, messages):
        # A failover and the confirmation of a restart may open frames for messages that came earlier.
        arrival_ns = frame.messages[frame.anchor].arrival_ns
        assert frame.emitted_ns <= arrival_ns + (60 + 250 + 100) * MS or assembler.epoch > 0
    if messages and (due := assembler.next_deadline_ns()) is not None:
        assembler.poll(due)
        assert assembler.next_deadline_ns() is None or assembler.next_deadline_ns() > due


@given(healthy_streams())
@settings(deadline=None, max_examples=150)
def test_every_anchor_message_yields_exactly_one_frame_whatever_the_others_do(
    messages: list[SensorMessage],
) -> None:
    assembler = make_assembler(queue_size=16)
    frames = [f for _, f in run(assembler, messages) + finish(assembler, messages)]
    lidar = [message.stamp_ns for message in messages if message.sensor == "lidar"]
    assert [f.stamp_ns for f in frames if f.anchor == "lidar"] == lidar
    # The camera may anchor only before the first lidar message or after the last.
    assert all(not lidar[0] < f.stamp_ns < lidar[-1] for f in frames if f.anchor != "lidar")


@given(healthy_streams())
@settings(deadline=None, max_examples=150)
def test_each_match_is_the_nearest_of_all_messages_that_had_arrived(messages: list[SensorMessage]) -> None:
    assembler = make_assembler(queue_size=32)
    frames = [f for _, f in run(assembler, messages) + finish(assembler, messages)]
    for frame in frames:
        reference_ns = frame.stamp_ns - (15 * MS if frame.anchor == "camera" else 0)
        for sync in SYNCS:
            if sync.name == frame.anchor:
                continue
            distances = [
                abs(m.stamp_ns - sync.offset_ns - reference_ns)
                for m in messages
                if m.sensor == sync.name and m.arrival_ns < frame.emitted_ns
            ]
            nearest = min(distances, default=sync.tolerance_ns + 1)
            if sync.name in frame.messages:
                used = abs(frame.messages[sync.name].stamp_ns - sync.offset_ns - reference_ns)
                assert used <= nearest
            else:
                assert nearest > sync.tolerance_ns
