import pytest

from pipelines.errors import Cancelled
from pipelines.steps import Step, run_steps
from pipelines.types import Progress


class Adder:
    """Returns each number plus one, and records which were given together."""

    def __init__(self):
        self.calls = []

    def take(self, numbers):
        self.calls.append(list(numbers))
        return [number + 1 for number in numbers]


def count(adder, image, start, steps, key: str | None = "numbers"):
    """Add one `steps` times."""
    for step in range(steps):
        start = yield Step(Progress(image, step + 1, steps, 1.0), adder.take, start, key)
    return start


def test_coroutines_run_one_after_another():
    adder, reported = Adder(), []
    images = [count(adder, 0, 10, 2), count(adder, 1, 20, 1)]
    assert run_steps(images, reported.append) == [12, 21]
    assert adder.calls == [[10], [11], [20]]
    assert [(progress.image, progress.step) for progress in reported] == [(0, 1), (0, 2), (1, 1)]


def test_steps_with_equal_keys_are_taken_together_on_request():
    adder = Adder()
    images = [count(adder, 0, 10, 2), count(adder, 1, 20, 1), count(adder, 2, 30, 1, "others")]
    assert run_steps(images, together=True) == [12, 21, 31]
    assert adder.calls == [[10, 20], [30], [11]]


def test_steps_without_a_key_are_taken_alone():
    adder = Adder()
    assert run_steps([count(adder, 0, 1, 1, None), count(adder, 1, 2, 1, None)], together=True) == [2, 3]
    assert adder.calls == [[1], [2]]


def pause(image, closed):
    try:
        answer = yield Step(Progress(image, 1, 1, 0.0))
        assert answer is None
        return image
    finally:
        closed.append(image)


def test_a_step_with_nothing_to_compute_is_only_reported():
    reported = []
    assert run_steps([pause(0, []), pause(1, [])], reported.append, together=True) == [0, 1]
    assert [progress.image for progress in reported] == [0, 1]


@pytest.mark.parametrize("together", [False, True])
def test_stopping_closes_every_coroutine(together):
    def stop(progress):
        if progress.image == 1:
            raise Cancelled("stop")

    closed = []
    with pytest.raises(Cancelled):
        run_steps([pause(0, closed), pause(1, closed), pause(2, closed)], stop, together)
    assert sorted(closed) == ([0, 1, 2] if together else [0, 1])
