"""Which scenarios make up a simulated training set, and their clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Rig
from e2e_perception.simulation.recording import record_clips
from e2e_perception.simulation.traffic import KINDS, simulate_scenario


@dataclass(frozen=True)
class TrainingSet:
    """A reproducible set of clips: the same numbers give the same clips, whoever generates which part.

    Attributes:
        num_scenarios: Scenarios; kinds take turns.
        first_seed: Seed of the first scenario; the others follow.
        duration_s: Length of each scenario [s].
        clip_length: Frames per clip.
        stride_s: From one clip's start to the next's [s].
        kinds: Kinds of scenario.
    """

    num_scenarios: int
    first_seed: int = 100_000
    duration_s: float = 8.0
    clip_length: int = 5
    stride_s: float = 1.5
    kinds: tuple[str, ...] = KINDS

    def scenarios(self) -> list[tuple[str, int]]:
        """(kind, seed) of every scenario."""
        return [
            (self.kinds[i % len(self.kinds)], self.first_seed + i) for i in range(self.num_scenarios)
        ]

    def clips(self, kind: str, seed: int, rig: Rig, network: NetworkConfig) -> Iterator[tuple[str, Clip]]:
        """Clips of one scenario with their names."""
        scenario = simulate_scenario(kind, seed, self.duration_s)
        clips = record_clips(
            scenario,
            rig,
            network,
            clip_length=self.clip_length,
            stride_s=self.stride_s,
            seed=seed,
        )
        for number, clip in enumerate(clips):
            yield f"{kind}-{seed}-{number:02d}", clip
