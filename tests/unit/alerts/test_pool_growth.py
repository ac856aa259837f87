"""Growth of used space, and the forecast from it."""

import pytest

from agent.alerts.pool_growth import DAY_SECONDS, PoolGrowth

MIB = 1 << 20
HOUR = 3600.0


def grown(*points: tuple[float, float]) -> PoolGrowth:
    """Return a history of these times and used MiB."""
    growth = PoolGrowth()
    for at, used in points:
        growth.add(at, int(used * MIB))
    return growth


def writing(seconds: float, mib_per_second: float, *, step: float = 1.0, start: float = 1000.0) -> PoolGrowth:
    """Return the history of a steady writer."""
    count = int(seconds / step)
    return grown(*((start + index * step, index * step * mib_per_second) for index in range(count + 1)))


def test_nothing_is_known_after_one_measurement() -> None:
    growth = grown((0, 5))
    assert growth.recent_rate() is None
    assert growth.time_to_full(MIB) is None


def test_the_rate_of_a_steady_writer_is_exact() -> None:
    assert writing(700, 2).rate(640.0) == pytest.approx(2 * MIB)
    assert writing(30, 2).recent_rate() == pytest.approx(2 * MIB)


def test_the_time_to_full_of_a_steady_writer_is_exact() -> None:
    assert writing(30, 2).time_to_full(60 * MIB) == pytest.approx(30)


def test_a_writer_that_has_just_begun_is_not_averaged_with_the_idle_time_before() -> None:
    idle = [(float(at), 1.0) for at in range(600)]
    busy = [(600.0 + at, 1.0 + at) for at in range(16)]
    assert grown(*idle, *busy).time_to_full(44 * MIB) == pytest.approx(44, rel=0.1)


def test_seconds_of_writing_say_nothing_about_a_pool_that_lasts_for_hours() -> None:
    assert writing(30, 1).time_to_full(int(5 * HOUR) * MIB) is None


def test_ten_minutes_of_writing_show_a_pool_that_is_full_within_the_hour() -> None:
    assert writing(700, 1, step=5).time_to_full(int(HOUR) * MIB) == pytest.approx(HOUR)


def test_a_day_of_writing_shows_a_pool_that_is_full_next_month() -> None:
    month = 30 * DAY_SECONDS
    assert writing(DAY_SECONDS + 1800, 1, step=30).time_to_full(int(month) * MIB) == pytest.approx(month, rel=0.02)


def test_a_day_of_growth_counts_although_it_has_ended() -> None:
    wrote, idle = 14 * HOUR, 11 * HOUR
    growth = grown(*((at, min(at, wrote)) for at in range(0, int(wrote + idle) + 1, 600)))
    assert growth.rate(21600.0) == 0
    day_rate = growth.rate(DAY_SECONDS)
    assert day_rate
    assert growth.time_to_full(MIB) == pytest.approx(MIB / day_rate)


def test_nearly_equal_rates_of_two_longer_windows_smooth_the_forecast() -> None:
    growth = grown(*((1000.0 + at, at + max(0, at - 190) / 20) for at in range(201)))
    rates = [growth.rate(window) for window in (10.0, 20.0, 40.0, 80.0)]
    assert rates == sorted(set(rates), reverse=True), "the writer has become a little faster"  # type: ignore[type-var]
    assert growth.time_to_full(30 * MIB) == pytest.approx(30 * MIB / growth.rate(40.0))  # type: ignore[operator]


def test_measurements_that_are_too_far_apart_say_nothing_about_a_short_window() -> None:
    assert grown((0, 0), (16, 16)).rate(10.0) == pytest.approx(MIB)
    assert grown((0, 0), (17, 17)).rate(10.0) is None


def test_the_shortest_forecast_is_that_of_the_fastest_growth() -> None:
    idle = [(float(at), 1.0) for at in range(600)]
    busy = [(600.0 + at, 1.0 + at) for at in range(16)]
    assert grown(*idle, *busy).shortest_time_to_full(44 * MIB, 10.0) == pytest.approx(44, rel=0.1)


def test_the_shortest_forecast_looks_back_for_ten_minutes_at_least() -> None:
    writer = [(float(at), float(at)) for at in range(600)]
    stopped = [(600.0 + at, 600.0) for at in range(60)]
    assert grown(*writer, *stopped).shortest_time_to_full(MIB, 10.0) is not None


def test_the_shortest_forecast_looks_back_as_far_as_it_may() -> None:
    growth = grown(*((float(at), float(min(at, 6000))) for at in range(0, 7210, 10)))
    assert growth.shortest_time_to_full(MIB, 640.0) is None
    assert growth.shortest_time_to_full(MIB, 5400.0) is not None


def test_old_copies_that_btrfs_frees_at_each_commit_hardly_change_the_rate() -> None:
    commit, copied_fields = 30, 20
    growth = grown(*((1000.0 + at, at + copied_fields * (at % commit) / commit) for at in range(200)))
    rates = []
    for at in range(200, 260):
        growth.add(1000.0 + at, int((at + copied_fields * (at % commit) / commit) * MIB))
        rates.append(growth.rate(160.0))
    assert rates == [pytest.approx(MIB, rel=0.05)] * len(rates)


def test_space_that_stays_the_same_does_not_grow() -> None:
    growth = grown(*((float(at), 5.0) for at in range(700)))
    assert growth.rate(640.0) == 0
    growth.add(700.0, 6 * MIB)
    assert growth.recent_rate()


def test_space_that_shrinks_has_no_time_to_full() -> None:
    growth = grown(*((float(at), 1000.0 - at) for at in range(700)))
    assert growth.time_to_full(MIB) is None
    assert growth.rate(640.0) == pytest.approx(-MIB)


def test_the_history_is_bounded() -> None:
    growth = writing(3 * DAY_SECONDS, 1, step=10)
    assert sum(len(series.times) for series in growth._series) < 250


def test_a_day_of_growth_survives_a_restart() -> None:
    before = writing(DAY_SECONDS + 1800, 1, step=30)
    after = PoolGrowth()
    end = 1000.0 + DAY_SECONDS + 1800
    after.restore(before.state_to_store(), end + 60)
    after.add(end + 60, int((DAY_SECONDS + 1860) * MIB))
    assert after.rate(DAY_SECONDS) == pytest.approx(MIB, rel=0.02)


@pytest.mark.parametrize(
    "entry", [None, 5, ["x"], [[1]], [["a", 2]], [[5000, 1]], [[-(10**9), 1]], [[10, -1]], [[10, 1 << 63]]]
)
def test_an_entry_that_is_not_a_history_is_ignored(entry: object) -> None:
    growth = PoolGrowth()
    growth.restore(entry, 1000.0)
    assert growth.state_to_store() == []


def test_a_clock_that_is_set_back_forgets_the_points_after_it() -> None:
    growth = writing(100, 1)
    growth.add(1020.0, 20 * MIB)
    growth.add(1031.0, 31 * MIB)
    assert growth.recent_rate() == pytest.approx(MIB)
