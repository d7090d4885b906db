"""The times of the parts of loading."""

import logging

from server.cli.bootstrap import _load_models
from server.config.settings import Settings
from server.engine.load_times import LoadTimes


def test_a_part_lasts_from_the_end_of_the_one_before_it():
    now = iter([10.0, 11.0, 13.5, 14.0])
    times = LoadTimes(lambda: next(now))
    for part in ("import", "read", "import"):
        times.finish(part)
    assert times.seconds == {"import": 1.5, "read": 2.5}
    assert str(times) == "4.0 s: import 1.5, read 2.5"


def test_the_parts_of_a_start_are_logged_when_it_is_ready(model, caplog):
    with caplog.at_level(logging.INFO, "naiad"):
        _load_models((model,), Settings(device="cpu", threads=1))
    (line,) = (text for text in caplog.messages if text.startswith("ready after"))
    parts = [part.split()[0] for part in line.partition(": ")[2].split(", ")]
    assert parts == ["import", "upscaler", "hash", "plan", "read", "probe", "prepare", "warm-up"]
