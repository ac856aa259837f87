"""The endpoint's rate limit, with an injected clock."""

from functools import partial

from agent.http.access_control import AccessControl
from agent.http.web_config import RateLimitConfig


def test_the_first_requests_pass_however_long_the_host_has_been_up() -> None:
    for uptime in (0.0, 60.0, 1e9):
        access = AccessControl(loopback=True, clock=partial(float, uptime))
        limit = RateLimitConfig(interval=3600.0, burst=2)
        assert [access.take_rate_limit_token(limit) for _ in range(3)] == [True, True, False]


def test_a_token_returns_after_each_interval() -> None:
    now = [100.0]
    access = AccessControl(loopback=True, clock=lambda: now[0])
    limit = RateLimitConfig(interval=10.0, burst=1)
    assert [access.take_rate_limit_token(limit), access.take_rate_limit_token(limit)] == [True, False]
    now[0] += 10.0
    assert [access.take_rate_limit_token(limit), access.take_rate_limit_token(limit)] == [True, False]
