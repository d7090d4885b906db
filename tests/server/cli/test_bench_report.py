"""What `naiad bench` prints."""

from pathlib import Path

import pytest

from server.cli.bench_report import format_number, format_row, format_settings, list_changes
from server.cli.bench_row import Drawn, Row
from server.config.settings import EngineSettings, Settings, SpeedSettings


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.000"),
        (0.01234, "0.012"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1234"),
    ],
)
def test_a_number_has_three_digits(value, text):
    assert format_number(value) == text


def test_settings_are_shown_if_they_matter_and_never_as_a_path():
    settings = Settings(
        token="pst-secret-token",
        archive=Path("/srv/pictures"),
        signing_key=Path("/srv/key.pem"),
        device="cpu",
        threads="auto",
        engine=EngineSettings(batching="shared", max_rows=4),
        speed=SpeedSettings(graphs="off"),
    )
    engine = {"engine.batching": "shared", "engine.max_rows": 4}
    assert list_changes(settings) == {"device": "cpu", **engine, "speed.graphs": "off"}
    assert list_changes(Settings()) == {}


def test_settings_are_one_line_that_says_which_evaluations_count():
    settings = Settings(device="cpu", speed=SpeedSettings(step_cache=3))
    text = "device = cpu, speed.step_cache = 3 (it/s counts cached steps too)"
    assert format_settings(list_changes(settings)) == text
    assert format_settings({}) == "defaults"


def test_a_row_fits_its_columns():
    row = Row((832, 1216), 4, 3, first=12.3456)
    row.pictures = [Drawn(8.0, 0.02), Drawn(9.0, 0.04), Drawn(7.5, 0.03)]
    row.wall, row.evaluations = 30.0, 84
    row.device, row.memory = {"draw": 21.0, "encode": 0.3, "decode": 1.5}, {"used": 1, "reserved": 9 << 30}
    cells = ["832x1216", "4", "12.3", "8.00", "(7.50-9.00)", "6.00", "4.00"]
    assert format_row(row).split() == [*cells, "0.100", "7.00", "0.500", "0.030", "9.00", "GiB"]


def test_a_row_that_ended_early_says_so():
    row = Row((64, 64), 1, 3, failure="out of memory")
    assert format_row(row).split() == [
        "64x64",
        "1",
        *"---------",
        *["out", "of", "memory", "after", "0", "of", "3", "pictures"],
    ]
