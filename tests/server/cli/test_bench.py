"""`naiad bench`, with the demo model and with one without networks."""

import json
import signal
import subprocess
import sys

import pytest
from command import build_command
from fake_model import FakeModel
from server_process import build_environment
from waiting import PROCESS_LIMIT

from pipelines.errors import OutOfMemory
from server.cli import bench, generate
from server.cli.bench import COMMON_SIZE, DEMO_SIZES, BenchPlan, choose_sizes, run_bench
from server.config.settings import EngineSettings, Settings
from server.config.toml import ConfigError
from server.engine.engine import Engine
from server.errors import Unavailable


@pytest.fixture
def naiad(monkeypatch, capsys, tmp_path):
    return build_command(monkeypatch, capsys, tmp_path)


@pytest.fixture
def use_fake(monkeypatch):
    """Let commands draw with a model without networks."""

    def use(fake_model):
        def build(model, settings, others, on_event, warms_up):
            return Engine(lambda: fake_model, on_event=on_event)

        monkeypatch.setattr(generate, "build_engine", build)

    return use


def test_a_table_and_the_same_facts_as_json(naiad, demo_file, tmp_path, caplog):
    options = (
        "--sizes",
        "64x64",
        "--concurrency",
        "1,2",
        "--steps",
        2,
        "--json",
        "out.json",
        "--device",
        "cpu",
    )
    done = naiad("bench", "--demo", *options)
    assert done.status == 0, done.error
    facts = json.loads((tmp_path / "out.json").read_text())
    lines = done.output.splitlines()
    assert f"naiad-demo.safetensors, sdxl, v, zero terminal SNR, hash {facts['model']['hash']}" in lines[1]
    assert [line for line in lines if line.startswith("settings")] == ["settings  device = cpu"]
    assert "2 steps of k_euler, native, scale 5" in done.output
    assert "On a CPU the times depend on the machine" in done.output
    assert "The demo model is small" in done.output
    rows = [line.split() for line in lines if line.startswith("64x64")]
    assert [row[1] for row in rows] == ["1", "2"]
    assert [(row["at_once"], len(row["picture_seconds"])) for row in facts["rows"]] == [(1, 3), (2, 4)]
    assert [row["evaluations"] for row in facts["rows"]] == [6, 8]
    for row in facts["rows"]:
        stages = row["stage_seconds_per_picture"]
        assert set(stages) == {"encode", "draw", "decode", "png"}
        assert sum(stages.values()) <= row["wall_seconds"]
        assert min(row["picture_seconds"]) <= row["median_seconds"] <= max(row["picture_seconds"])
    assert (facts["hardware"]["device"], facts["settings"]) == ("cpu", {"device": "cpu"})
    assert type(facts["hardware"]["threads"]) is int
    assert (facts["interrupted"], facts["request"]["steps"]) == (False, 2)
    assert "too small" not in caplog.text  # 64x64 has no room for metadata, which each picture would say
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]  # no key was made
    for text in (done.output, (tmp_path / "out.json").read_text()):
        assert str(demo_file.parent) not in text
        assert str(tmp_path) not in text


@pytest.mark.slow
def test_an_interrupt_ends_with_what_was_measured(tmp_path):
    options = ["--sizes", "64x64", "--concurrency", "1,64", "--steps", "2", "--json", "out.json"]
    command = [sys.executable, "-P", "-m", "server", "bench", "--demo", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=build_environment(),
    ) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if line.startswith("64x64")).split()[1] == "1"
        process.send_signal(signal.SIGINT)  # in the second row, with 192 pictures, or just before
        output, _ = process.communicate(timeout=PROCESS_LIMIT)
        assert process.returncode == 130
    assert "it/s: evaluations of the UNet a second" in output
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["interrupted"]
    first, *others = facts["rows"]
    assert (first["failure"], len(first["picture_seconds"])) == (None, 3)
    assert all(row["failure"] == "interrupted" for row in others)


def test_an_interrupt_ends_all_rows(model, tmp_path, monkeypatch, capsys, use_fake):
    use_fake(FakeModel())
    measure = bench.measure_row

    def interrupt(row, clients, *others):
        if row.at_once == 2:
            raise KeyboardInterrupt
        measure(row, clients, *others)

    monkeypatch.setattr(bench, "measure_row", interrupt)
    plan = BenchPlan(((64, 64),), (1, 2, 3), 1, 3)
    assert run_bench(model, Settings(), plan, tmp_path / "out.json", force=False) == 130
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("64x64")]
    assert ["interrupted after 0 of 4 pictures" in row for row in rows] == [False, True]
    failures = [row["failure"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]]
    assert failures == [None, "interrupted"]


def test_a_row_that_fails_does_not_end_the_others(model, capsys, use_fake):
    fake_model = FakeModel()
    use_fake(fake_model)
    begin = fake_model.begin

    def fail_wide(job, on_preview=None):
        fake_model.failure = OutOfMemory() if job.passes[0].width == 128 else None
        return begin(job, on_preview)

    fake_model.begin = fail_wide
    plan = BenchPlan(((128, 64), (64, 64)), (1,), 1, 3)
    assert run_bench(model, Settings(), plan, None, force=False) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(("GiB", "pictures"))]
    assert rows[0].endswith("out of memory after 0 of 3 pictures")
    assert "after" not in rows[1]


def test_a_model_that_cannot_be_loaded_is_an_error(model, monkeypatch):
    def load():
        raise ValueError("broken")

    monkeypatch.setattr(generate, "build_engine", lambda *_: Engine(load))
    with pytest.raises(Unavailable, match="broken"):
        run_bench(model, Settings(), BenchPlan(((64, 64),), (1,), 1, 3), None, force=False)


def test_no_more_pictures_than_the_queue_takes(model):
    settings = Settings(engine=EngineSettings(queue_limit=2))
    with pytest.raises(ConfigError, match=r"--concurrency 4: more than engine.queue_limit = 2"):
        run_bench(model, settings, BenchPlan(((64, 64),), (1, 4), 1, 3), None, force=False)


def test_sizes_are_the_common_one_and_the_models_own(model):
    assert choose_sizes(model, is_demo=False) == (COMMON_SIZE,)
    assert choose_sizes(model, is_demo=True) == DEMO_SIZES


def test_each_row_has_enough_pictures_for_its_clients():
    rows = BenchPlan(((64, 64),), (1, 2, 4, 8), None, 3).build_rows()
    assert [(row.at_once, row.planned) for row in rows] == [(1, 3), (2, 4), (4, 8), (8, 16)]
