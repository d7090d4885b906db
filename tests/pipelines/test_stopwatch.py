"""Marks in the work of a device."""

import torch

from pipelines.stopwatch import Stopwatch


def test_times_on_a_cpu_add_up():
    stopwatch = Stopwatch(torch.device("cpu"))
    marks = [stopwatch.mark() for _ in range(4)]
    first, last = marks[0], marks[-1]
    assert isinstance(first, float)
    assert isinstance(last, float)
    times = stopwatch.measure(marks)
    assert len(times) == 3
    assert min(times) >= 0
    assert abs(sum(times) - (last - first)) < 1e-9
    assert stopwatch.measure(marks[:1]) == []


class FakeEvent:
    """An event of a GPU whose work takes 250 ms for each mark, and is waited for before it is measured."""

    recorded = 0

    def __init__(self, enable_timing):
        assert enable_timing
        self.is_waited_for, self.number = False, None

    def record(self, stream):
        assert stream == "stream of cuda:1"
        FakeEvent.recorded += 1
        self.number = FakeEvent.recorded

    def synchronize(self):
        self.is_waited_for = True

    def elapsed_time(self, end):
        assert end.is_waited_for
        return 250.0 * (end.number - self.number)


def test_times_on_a_gpu_are_those_between_events_in_its_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    stopwatch = Stopwatch(torch.device("cuda:1"))
    marks = [stopwatch.mark() for _ in range(3)]
    assert stopwatch.measure(marks) == [0.25, 0.25]
