"""Requests that wait for jobs: results and errors reach all of them, and a job ends once none waits."""

import asyncio

import pytest
from jobs import make_job

from server.api.active_jobs import MOST_ENDED, ActiveJobs, JobName
from server.engine.ticket import Result, Ticket
from server.errors import Conflict

RESULT = Result([], (), 0.0, 0.0)


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


def run(scenario):
    """Run a scenario with all jobs, and one that two requests wait for."""

    async def start():
        jobs, ticket = ActiveJobs(), Ticket(make_job())
        job = jobs.add(JobName("1", "anna", "abc123"), ticket)
        await scenario(jobs, ticket, job, [job.join(), job.join()])

    asyncio.run(start())


def test_all_requests_get_the_result_and_the_job_is_forgotten():
    async def scenario(jobs, ticket, job, results):
        assert list(jobs) == [job]
        ticket.future.set_result(RESULT)
        assert [await result for result in results] == [RESULT, RESULT]
        assert list(jobs) == []
        assert not ticket.is_cancelled

    run(scenario)


def test_all_requests_get_the_error():
    async def scenario(jobs, ticket, job, results):
        ticket.future.set_exception(ValueError("broken"))
        for result in results:
            with pytest.raises(ValueError, match="broken"):
                await result
        assert list(jobs) == []

    run(scenario)


@pytest.mark.parametrize("is_running", [True, False])
def test_the_job_is_cancelled_when_the_last_request_leaves(is_running):
    async def scenario(jobs, ticket, job, results):
        if is_running:
            ticket.future.set_running_or_notify_cancel()
        results[0].cancel()
        await settle()
        assert not ticket.is_cancelled
        results[1].cancel()
        await settle()
        assert ticket.is_cancelled
        assert ticket.future.cancelled() == (not is_running)
        assert list(jobs) == []

    run(scenario)


def test_a_request_that_leaves_does_not_take_the_result_from_another():
    async def scenario(jobs, ticket, job, results):
        results[0].cancel()
        await settle()
        ticket.future.set_result(RESULT)
        assert await results[1] is RESULT

    run(scenario)


def test_a_job_that_fails_by_request_is_cancelled_and_all_requests_get_the_error():
    async def scenario(jobs, ticket, job, results):
        job.fail(Conflict("cancelled"))
        assert list(jobs) == []
        for result in results:
            with pytest.raises(Conflict, match="cancelled"):
                await result
        await settle()
        assert ticket.future.cancelled()

    run(scenario)


def test_an_error_that_no_request_takes_is_not_logged(caplog):
    async def scenario(jobs, ticket, job, results):
        job.fail(Conflict("cancelled"))
        results.clear()
        await settle()

    run(scenario)
    assert caplog.records == []


def test_files_are_made_once_for_all_requests_and_no_longer_than_one_wants_them():
    calls, made = [], asyncio.Event()

    async def encode():
        calls.append(1)
        await made.wait()
        return [b"file"]

    async def scenario(jobs, ticket, job, results):
        takers = [asyncio.ensure_future(job.share_files(encode)) for _ in range(2)]
        await settle()
        takers[0].cancel()
        await settle()
        made.set()
        assert await takers[1] == [b"file"]
        assert len(calls) == 1
        made.clear()
        alone = asyncio.ensure_future(job.share_files(encode))
        await settle()
        encoding = job._files
        alone.cancel()
        await settle()
        assert encoding.cancelled()

    run(scenario)


def test_a_job_is_found_by_either_name_and_only_by_its_client_and_the_operator():
    async def scenario(jobs, ticket, job, results):
        for name in ("1", "abc123"):
            assert jobs.find(name, "anna") == jobs.find(name, None) == [job]
            assert jobs.find(name, "ben") == []
            assert not jobs.has_ended(name, None)
        assert jobs.find("2", None) == []
        jobs.add(JobName("3", "anna"), Ticket(make_job()))
        assert jobs.find("", "anna") == []
        job.fail(Conflict("cancelled"))
        for name in ("1", "abc123"):
            assert jobs.find(name, None) == []
            assert [jobs.has_ended(name, client) for client in ("anna", None, "ben")] == [True, True, False]

    run(scenario)


def test_only_the_last_jobs_that_have_ended_are_known():
    async def scenario(jobs, ticket, job, results):
        for number in range(2, MOST_ENDED + 3):
            jobs.add(JobName(str(number), "anna"), Ticket(make_job())).fail(Conflict("cancelled"))
        assert [jobs.has_ended(name, None) for name in ("2", "3", str(MOST_ENDED + 2))] == [False, True, True]

    run(scenario)
