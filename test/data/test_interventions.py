"""What a recording's health messages say of a clip."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.core.results import SafetyState
from e2e_perception.data.interventions import Interventions


def test_the_share_is_of_messages_about_the_interval() -> None:
    seen = Interventions()
    for k in range(10):
        seen.add(100 * k, SafetyState.STOPPED if k in (3, 4) else SafetyState.DEGRADED)
    assert seen.share(200, 500) == 0.5
    assert seen.share(300, 400) == 1.0
    assert seen.share(500, 900) == 0.0
    assert seen.share(901, 2000) is None


def test_without_health_nothing_is_known() -> None:
    assert Interventions().share(0, 10**18) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from(list(SafetyState)))), st.integers(0, 50))
def test_stamps_that_go_back_do_not_disturb_the_order(
    messages: list[tuple[int, SafetyState]], first: int
) -> None:
    seen, kept = Interventions(), []
    for stamp, state in messages:
        seen.add(stamp, state)
        if not kept or stamp >= kept[-1][0]:
            kept.append((stamp, state >= SafetyState.MINIMAL_RISK))
    about = [took_over for stamp, took_over in kept if stamp >= first]
    assert seen.share(first, 100) == (sum(about) / len(about) if about else None)
