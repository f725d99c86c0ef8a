"""Histograms of stages against numpy's percentiles; and the garbage collector between frames."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.runtime.idle_gc import MOST_POSTPONED, IdleCollector
from e2e_perception.runtime.stage_times import EDGES_MS, GENERATION, RollingHistogram, StageTimes

BUCKET = 2.0 ** (1.0 / 8.0)  # an edge in units of the one before


@settings(deadline=None)
@given(
    st.lists(st.floats(0.02, 20_000.0), min_size=1, max_size=300),
    st.sampled_from([0.5, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_at_most_a_bucket_above_the_sample_that_it_stands_for(
    values: list[float], share: float
) -> None:
    histogram = RollingHistogram()
    for value in values:
        histogram.observe(value)
    exact = float(np.percentile(values, 100.0 * share, method="inverted_cdf"))
    assert exact <= histogram.quantile(share) * (1 + 1e-12)
    assert histogram.quantile(share) <= exact * BUCKET * (1 + 1e-12)


def test_what_lies_outside_the_buckets_is_not_lost() -> None:
    histogram = RollingHistogram()
    assert math.isnan(histogram.quantile(0.5))
    histogram.observe(0.0)
    assert histogram.quantile(1.0) == EDGES_MS[0]
    for value in (1e9, math.nan, -1.0):
        histogram.observe(value)
    assert len(histogram) == 4
    assert histogram.quantile(0.25) == EDGES_MS[0]
    assert histogram.quantile(0.5) == math.inf


def test_the_distant_past_is_forgotten_and_memory_is_bounded() -> None:
    histogram = RollingHistogram()
    for _ in range(GENERATION):
        histogram.observe(500.0)
    for _ in range(2 * GENERATION):
        histogram.observe(5.0)
        assert len(histogram) <= 2 * GENERATION
    assert histogram.quantile(1.0) == pytest.approx(5.0, rel=BUCKET - 1.0)


def test_each_stage_has_its_own() -> None:
    times = StageTimes()
    for k in range(100):
        times.observe({"infer": 10.0, "track": 1.0 + (k >= 98)})
    quantiles = times.quantiles()
    assert list(quantiles) == ["infer", "track"]
    assert quantiles["infer"].p50 == quantiles["infer"].p99 == pytest.approx(10.0, rel=BUCKET - 1.0)
    assert quantiles["track"].p95 == pytest.approx(1.0, rel=BUCKET - 1.0)
    assert quantiles["track"].p99 == pytest.approx(2.0, rel=BUCKET - 1.0)


# ------------------------------------------------------------------ garbage


class Knot:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[IdleCollector]:
    collector = IdleCollector()
    collector.start()
    yield collector
    collector.stop()


def test_garbage_is_collected_after_frames_and_at_no_other_time(collector: IdleCollector) -> None:
    assert not gc.isenabled()
    garbage = weakref.ref(Knot())
    kept = [[] for _ in range(20_000)]  # would start a collection, were it on
    assert garbage() is not None
    collector.after_frame(idle=True)
    assert garbage() is None
    assert len(kept) == 20_000


def test_while_frames_wait_it_is_put_off_but_not_for_ever(collector: IdleCollector) -> None:
    garbage = weakref.ref(Knot())
    for _ in range(MOST_POSTPONED - 1):
        collector.after_frame(idle=False)
    assert garbage() is not None
    collector.after_frame(idle=False)
    assert garbage() is None


def test_garbage_that_has_grown_old_is_collected_too(collector: IdleCollector) -> None:
    knot = Knot()
    garbage = weakref.ref(knot)
    for _ in range(11):  # it moves to the oldest generation
        collector.after_frame(idle=True)
    del knot
    for _ in range(8):
        collector.after_frame(idle=True)
    assert garbage() is not None
    for _ in range(100):
        collector.after_frame(idle=True)
    assert garbage() is None


def test_everything_is_given_back() -> None:
    before = gc.get_freeze_count()
    collector = IdleCollector()
    collector.start()
    assert gc.get_freeze_count() > before
    collector.stop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    collector.after_frame(idle=True)  # nothing to do any more
    collector.stop()
