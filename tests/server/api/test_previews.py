import asyncio
from threading import Thread

from pipelines.types import Preview
from server.api.previews import LatestPreviews


def make_preview(image, step):
    return Preview(image, step, 1.0, b"%d %d" % (image, step))


def put_from_a_thread(previews, *sent):
    thread = Thread(target=lambda: [previews.put(preview) for preview in sent])
    thread.start()
    thread.join()


def test_a_slow_reader_gets_the_newest_preview_of_each_image():
    async def read():
        previews = LatestPreviews()
        put_from_a_thread(
            previews, *(make_preview(image, step) for step in range(1, 100) for image in (1, 0))
        )
        first = await previews.take(None)
        put_from_a_thread(previews, make_preview(0, 100))
        return first, await previews.take(None)

    assert asyncio.run(read()) == ([make_preview(0, 99), make_preview(1, 99)], [make_preview(0, 100)])


def test_waiting_ends_with_the_time_or_when_nothing_follows():
    async def read():
        previews = LatestPreviews()
        timed_out = await previews.take(0.01)
        Thread(target=previews.wake).start()
        return timed_out, await previews.take(None)

    assert asyncio.run(read()) == ([], [])


def test_a_preview_after_the_end_of_the_server_is_dropped():
    async def make():
        return LatestPreviews()

    previews = asyncio.run(make())
    previews.put(make_preview(0, 1))
    previews.wake()
