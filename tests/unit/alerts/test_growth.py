"""Growth of used space, and the forecast from it."""

import pytest

from agent.alerts.growth import DAY_SECONDS, Growth

MIB = 1 << 20
HOUR = 3600.0


def grown(*points: tuple[float, float]) -> Growth:
    """Return a history of these times and used MiB."""
    growth = Growth()
    for at, used in points:
        growth.add(at, int(used * MIB))
    return growth


def writing(seconds: float, mib_per_second: float, *, step: float = 1.0, start: float = 1000.0) -> Growth:
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


def test_space_that_shrinks_has_no_time_to_full() -> None:
    growth = grown(*((float(at), 1000.0 - at) for at in range(700)))
    assert growth.time_to_full(MIB) is None
    assert growth.rate(640.0) == pytest.approx(-MIB)


def test_the_history_is_bounded() -> None:
    growth = writing(3 * DAY_SECONDS, 1, step=10)
    assert sum(len(series.times) for series in growth._series) < 250


def test_a_day_of_growth_survives_a_restart() -> None:
    before = writing(DAY_SECONDS + 1800, 1, step=30)
    after = Growth()
    end = 1000.0 + DAY_SECONDS + 1800
    after.restore(before.to_note(), end + 60)
    after.add(end + 60, int((DAY_SECONDS + 1860) * MIB))
    assert after.rate(DAY_SECONDS) == pytest.approx(MIB, rel=0.02)


@pytest.mark.parametrize("note", [None, 5, ["x"], [[1]], [["a", 2]], [[5000, 1]], [[-(10**9), 1]], [[10, -1]]])
def test_a_note_that_is_not_a_history_is_ignored(note: object) -> None:
    growth = Growth()
    growth.restore(note, 1000.0)
    assert growth.to_note() == []


def test_a_clock_that_is_set_back_forgets_the_points_after_it() -> None:
    growth = writing(100, 1)
    growth.add(1020.0, 20 * MIB)
    growth.add(1031.0, 31 * MIB)
    assert growth.recent_rate() == pytest.approx(MIB)
