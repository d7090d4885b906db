"""The order of jobs, and what follows from it for those who wait: a simulated device takes steps of one second."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.order import Claim, Shares, rank_claims


def order(*claims):
    return [claim.number for claim in rank_claims(claims)]


def test_shorter_jobs_come_first_and_equal_ones_in_order_of_arrival():
    assert order(Claim(1, "a", 9.0, 0.0), Claim(2, "b", 3.0, 0.0), Claim(3, "c", 3.0, 0.0)) == [2, 3, 1]


def test_a_client_with_many_jobs_delays_others_no_more_than_with_one():
    many = [Claim(number, "many", 4.0, 0.0) for number in range(10)]
    assert order(*many, Claim(10, "one", 4.0, 0.0))[:2] == [0, 10]


def test_a_clients_own_short_job_passes_its_long_ones():
    assert order(Claim(1, "a", 60.0, 0.0), Claim(2, "a", 2.0, 0.0)) == [2, 1]


def test_priority_weighs_a_clients_share():
    low, high = Claim(1, "low", 10.0, 0.0, -10), Claim(2, "high", 10.0, 0.0, 10)
    assert order(low, high) == [2, 1]
    assert order(low, replace(high, remaining=39.0)) == [2, 1]
    assert order(low, replace(high, remaining=41.0)) == [1, 2]


def test_waiting_moves_a_job_forward():
    long = Claim(1, "a", 60.0, 0.0)
    assert order(long, Claim(2, "b", 2.0, 0.0)) == [2, 1]
    assert order(replace(long, waited=120.0), Claim(2, "b", 2.0, 0.0)) == [1, 2]


claims = st.lists(
    st.builds(
        Claim,
        st.integers(),
        st.sampled_from("abc"),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
        st.integers(-100, 100),
    ),
    unique_by=lambda claim: claim.number,
)


@given(claims)
def test_every_claim_is_ranked_once_whatever_the_order_of_the_input(found):
    ranking = rank_claims(found)
    assert sorted(claim.number for claim in ranking) == sorted(claim.number for claim in found)
    assert rank_claims(reversed(found)) == ranking


@dataclass
class Job:
    """A job of a simulation; times are whole seconds."""

    number: int
    client: str
    arrival: int
    work: int
    priority: int = 0
    done: int = 0
    end: int | None = None

    def claim(self, now, served):
        waited = now - self.arrival - self.done
        return Claim(self.number, self.client, self.work - self.done, waited, self.priority, served)

    @property
    def wait(self):
        assert self.end is not None
        return self.end - self.arrival - self.work


def simulate(jobs, until=100_000):
    """Let a device take steps of a second until all jobs are done."""
    shares = Shares()
    for now in range(until):
        present = {job.number: job for job in jobs if job.arrival <= now and job.end is None}
        if not present:
            if all(job.end is not None for job in jobs):
                break
            continue
        claims = [job.claim(now, shares.get(job.client, now)) for job in present.values()]
        job = present[rank_claims(claims)[0].number]
        job.done += 1
        if job.done == job.work:
            job.end = now + 1
            shares.add(job.client, job.work, now + 1)
    return jobs


def test_short_jobs_wait_a_quarter_of_what_they_do_first_come_first_served():
    """A short job every 20 seconds, behind a long one every 60."""
    long = [Job(number, "long", 60 * number, 40) for number in range(10)]
    short = [Job(100 + number, "short", 20 * number + 5, 3) for number in range(30)]
    simulate([*long, *short])
    waits = sorted(job.wait for job in short)
    in_order, now = [], 0
    for job in sorted([*long, *short], key=lambda job: job.arrival):
        now = max(now, job.arrival) + job.work
        if job.client == "short":
            in_order.append(now - job.work - job.arrival)
    assert waits[len(waits) // 2] <= sorted(in_order)[len(in_order) // 2] / 4


@pytest.mark.parametrize("short_client", ["same", "other"])
def test_an_endless_stream_of_short_jobs_does_not_starve_a_long_one(short_client):
    """The short ones alone would keep the device busy."""
    long = Job(0, "same", 0, 60)
    short = [Job(1 + number, short_client, 2 * number, 2) for number in range(2000)]
    simulate([long, *short])
    assert long.end is not None
    assert (
        long.end <= 60 + 4 * 60
    )  # two seconds of waiting count for one of work, and it waits about 60 / 0.5


def test_equal_jobs_are_not_interrupted():
    """Two jobs of the same size that come one after the other end one after the other."""
    first, second = simulate([Job(0, "a", 0, 30), Job(1, "b", 5, 30)])
    assert (first.end, second.end) == (30, 60)


def test_a_client_with_many_jobs_waiting_delays_another_by_one_of_them():
    many = [Job(number, "many", 0, 10) for number in range(10)]
    one = Job(10, "one", 1, 10)
    simulate([*many, one])
    assert one.end == 20


def test_two_clients_with_many_jobs_take_turns():
    """And as many seconds as their priorities say."""
    jobs = [Job(number, "ab"[number >= 40], 0, 5, 0 if number < 40 else 10) for number in range(80)]
    simulate(jobs)
    until = 200
    ended = [job for job in jobs if job.end is not None and job.end <= until]
    seconds = {name: sum(job.work for job in ended if job.client == name) for name in "ab"}
    assert 1.5 <= seconds["b"] / seconds["a"] <= 2.6


def test_what_a_client_was_given_is_forgotten():
    shares = Shares()
    shares.add("a", 8.0, 0.0)
    shares.add("b", 1.0, 60.0)
    assert (shares.get("a", 60.0), shares.get("a", 180.0), shares.get("c", 0.0)) == (4.0, 1.0, 0.0)
    shares.add("b", 1.0, 10_000.0)
    assert shares.get("a", 10_000.0) == 0.0
