"""The watchdog without its thread: which operations it reports, and when."""

import pytest
from waiting import wait_until

from server.engine.watchdog import INTERVAL, SLOWER, WEIGHTS, Watchdog


@pytest.fixture
def reported():
    return []


@pytest.fixture
def watchdog(reported):
    return Watchdog(600, reported.append)


def test_an_operation_that_takes_too_long_is_reported_once(watchdog, reported):
    with watchdog.watch():
        watchdog.count(600)
        assert (reported, watchdog.is_hanging) == ([], False)
        watchdog.count(1)
        assert watchdog.is_hanging
        watchdog.count(9999)
    assert reported == [601]
    assert not watchdog.is_hanging


def test_each_operation_has_its_own_time(watchdog, reported):
    for _ in range(5):
        with watchdog.watch():
            watchdog.count(400)
        watchdog.count(400)
    assert reported == []


def test_steps_may_take_ten_times_as_long_as_the_longest_so_far(watchdog, reported):
    with watchdog.watch():
        watchdog.count(100)
    with watchdog.watch():
        watchdog.count(SLOWER * 100)
        assert reported == []
        watchdog.count(1)
    assert reported == [SLOWER * 100 + 1]


def test_what_has_hung_and_changes_of_weights_are_no_measure_for_steps(watchdog, reported):
    with watchdog.watch():
        watchdog.count(700)
    with watchdog.watch(WEIGHTS):
        watchdog.count(WEIGHTS * 600)
    with watchdog.watch():
        watchdog.count(601)
    assert reported == [700, 601]


def test_a_change_of_weights_may_take_longer(watchdog, reported):
    with watchdog.watch(WEIGHTS):
        watchdog.count(WEIGHTS * 600)
        assert reported == []
        watchdog.count(1)
        assert reported == [WEIGHTS * 600 + 1]


def test_a_computer_that_slept_has_not_hung(watchdog, reported):
    now = 1e6
    watchdog.look(now)
    with watchdog.watch():
        for _ in range(10):
            now += 3600  # between any two looks
            watchdog.look(now)
        assert reported == []
        for _ in range(600):
            now += INTERVAL
            watchdog.look(now)
    assert len(reported) == 1


def test_its_thread_looks_until_it_is_stopped(monkeypatch):
    monkeypatch.setattr("server.engine.watchdog.INTERVAL", 0.001)
    reported = []
    watchdog = Watchdog(0.01, reported.append)
    watchdog.start()
    with watchdog.watch():
        wait_until(lambda: reported)
    watchdog.stop()


def test_a_timeout_of_0_starts_no_thread(monkeypatch):
    monkeypatch.setattr("server.engine.watchdog.Thread", None)
    Watchdog(0, lambda _: None).start()
