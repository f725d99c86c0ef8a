"""Which recordings show the same things: all pairs compared, against those that a sweep and a grid leave.

Recordings are drives of a minute, of random streets in a city of 10 km, a tenth of them of two robots at a
time. Both ways have to find the same pairs. The figure of the second is the best of three runs.

    python benchmarks/bench_splits.py [--shards 250 500 1000 2000] [--most-pairs 2000000] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np

from e2e_perception.data.ego_paths import SPACING, EgoPath
from e2e_perception.data.splits import Recording, possible_pairs, relation

CITY = 10_000.0  # [m]
NOW_NS = 1_760_000_000 * 10**9
MINUTE_NS = 60 * 10**9
REPEATS = 3
Pairs = list[tuple[int, int]]


def drives(count: int, seed: int = 0) -> list[Recording]:
    """Straight drives along a grid of streets, 100 m apart, at up to 15 m/s."""
    rng = np.random.default_rng(seed)
    made: list[Recording] = []
    for k in range(count):
        points_P2 = np.zeros((int(rng.integers(20, 180)), 2))
        axis = int(rng.integers(2))
        points_P2[:, axis] = rng.uniform(0.0, CITY) + SPACING * np.arange(len(points_P2))
        points_P2[:, 1 - axis] = 100.0 * rng.integers(CITY / 100.0)
        together = rng.random() < 0.1 and made
        start_ns = made[-1].start_ns if together else NOW_NS + 2 * k * MINUTE_NS
        path = EgoPath("utm", np.arange(len(points_P2)), points_P2)
        made.append(Recording(f"r{k}", "", f"bag:{k}", str(k), start_ns, start_ns + MINUTE_NS, True, path))
    return made


def all_pairs(recordings: list[Recording]) -> Pairs:
    """Every pair is compared."""
    return _related(recordings, list(combinations(range(len(recordings)), 2)))


def swept(recordings: list[Recording]) -> Pairs:
    """As `dataset split` and `audit` do it."""
    return _related(recordings, possible_pairs(recordings))


def _related(recordings: list[Recording], pairs: Pairs) -> Pairs:
    return [(i, j) for i, j in pairs if relation(recordings[i], recordings[j])]


def measured(way: Callable[[list[Recording]], Pairs], count: int, repeats: int) -> tuple[float, Pairs]:
    """Seconds and what was found, each time of fresh recordings: paths keep their grids."""
    best = np.inf
    for _ in range(repeats):
        recordings = drives(count)
        started = time.perf_counter()
        found = way(recordings)
        best = min(best, time.perf_counter() - started)
    return float(best), found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--most-pairs", type=int, default=200_000, help="beyond, all pairs are not compared")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for count in options.shards:
        swept_s, found = measured(swept, count, REPEATS)
        row = {"shards": count, "related": len(found), "swept_s": swept_s}
        if count * (count - 1) // 2 <= options.most_pairs:
            every_s, expected = measured(all_pairs, count, 1)
            assert found == expected, "both ways find the same pairs"
            row |= {"all_pairs_s": every_s, "ratio": every_s / swept_s}
        rows.append(row)
        if not options.json:
            line = f"{count:5} shards, {len(found):5} related pairs: swept {swept_s:.3f} s"
            if "ratio" in row:
                line += f", all pairs {row['all_pairs_s']:.2f} s, {row['ratio']:.0f} times as long"
            print(line, flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
