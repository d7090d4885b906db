"""What `naiad bench` prints, to be posted as it is, and its JSON. No path is in either, only names of files."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.job import Job
from server.cli.bench_row import Row
from server.config.settings import Settings
from server.engine.model import ServedModel
from server.picture.comment import naiad_version

SHOWN_SETTINGS = frozenset({"metadata", "device", "dtype", "attention", "threads", "engine", "speed"})
"""Settings that a picture's time may depend on; others may hold paths, addresses or tokens."""
STAGES = ("encode", "draw", "decode", "png")
HEADINGS = ("size", "at once", "first s", "s/picture", "per min", "it/s", *STAGES, "memory")
WIDTHS = (9, 7, 7, 19, 7, 5, 6, 5, 6, 5, 8)
LEGEND = (
    "first: seconds until the first pictures were finished, as many as are drawn at a time; they warm up",
    "s/picture: from a request to its file, median (least-most); it/s: evaluations of the UNet a second",
    "encode to png: seconds of each stage for a picture; memory: the most that was in use",
)
CPU_NOTE = (
    "On a CPU the times depend on the machine and on what else it runs. Compare only what was measured on one "
    "machine,\none after the other."
)
DEMO_NOTE = "The demo model is small: its times say nothing of an SDXL checkpoint's."


def describe_setup(
    model: ServedModel, settings: Settings, hardware: Mapping[str, str | int], job: Job, load_seconds: float
) -> dict[str, Any]:
    """Return what was measured on what: versions, model, hardware, settings that are not the defaults, request."""
    detection = model.detection
    return {
        "naiad": naiad_version(),
        "model": {
            "file": model.entry.path.name,
            "family": detection.family,
            "prediction": detection.prediction,
            "zero_terminal_snr": detection.zsnr,
            "hash": model.fingerprint,
            "profile": model.profile.name,
        },
        "hardware": dict(hardware),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "settings": list_changes(settings),
        "request": {
            "sampler": job.sampler,
            "schedule": job.schedule,
            "steps": job.steps,
            "scale": job.guidance.scale,
        },
        "load_seconds": round(load_seconds, 3),
    }


def list_changes(settings: Settings) -> dict[str, object]:
    """Return the settings that a picture's time may depend on and that are not the defaults, by dotted name."""
    changes: dict[str, object] = {}
    for name, value in settings.model_dump(include=set(SHOWN_SETTINGS), exclude_defaults=True).items():
        is_table = name in ("engine", "speed")
        changes |= {f"{name}.{key}": each for key, each in value.items()} if is_table else {name: value}
    return changes


def format_header(setup: Mapping[str, Any]) -> str:
    """Return what was measured on what, and the headings of the rows."""
    model, hardware, request = setup["model"], dict(setup["hardware"]), setup["request"]
    noise = ", zero terminal SNR" if model["zero_terminal_snr"] else ""
    torch, dtype = hardware.pop("torch"), hardware.pop("dtype")
    hardware.pop("device")
    name, others = hardware.pop("name"), [f"{key} {value}" for key, value in hardware.items()]
    guidance = f"scale {request['scale']:g}"
    lines = {
        "naiad": setup["naiad"],
        "model": f"{model['file']}, {model['family']}, {model['prediction']}{noise}, hash {model['hash']}",
        "device": ", ".join([name, *others]),
        "software": f"torch {torch}, Python {setup['python']}, {setup['system']}",
        "dtype": dtype,
        "settings": format_settings(setup["settings"]),
        "request": f"{request['steps']} steps of {request['sampler']}, {request['schedule']}, {guidance}",
        "loaded in": f"{setup['load_seconds']:.1f} s",
    }
    facts = [f"{key:<10}{value}" for key, value in lines.items()]
    return "\n".join([*facts, "", _join(HEADINGS)])


def format_settings(changes: Mapping[str, object]) -> str:
    """Return settings as one line; it is posted without the notes, so it says whose evaluations are cheaper."""
    cached = {"speed.step_cache": " (it/s counts cached steps too)"}
    return ", ".join(f"{key} = {value}{cached.get(key, '')}" for key, value in changes.items()) or "defaults"


def format_row(row: Row) -> str:
    """Return a row of the table."""
    stages = row.stages
    size, seconds = f"{row.size[0]}x{row.size[1]}", row.seconds
    spread = "-" if seconds is None else "{} ({}-{})".format(*map(format_number, seconds))
    cells = (
        *(size, str(row.at_once), format_number(row.first), spread),
        *(format_number(row.pictures_per_minute), format_number(row.evaluations_per_second)),
        *(format_number(stages.get(stage)) for stage in STAGES),
        _format_memory(row.memory),
    )
    drawn = f"  {row.failure} after {len(row.pictures)} of {row.planned} pictures" if row.failure else ""
    return f"{_join(cells)}{drawn}"


def format_notes(setup: Mapping[str, Any]) -> str:
    """Return what the columns mean, and what the figures do not."""
    notes = [CPU_NOTE] if setup["hardware"]["device"] == "cpu" else []
    notes += [DEMO_NOTE] if setup["model"]["profile"] == "demo" else []
    return "\n".join(["", *LEGEND, *notes])


def to_json(setup: Mapping[str, Any], rows: Sequence[Row], was_interrupted: bool) -> dict[str, object]:
    """Return the same facts as a JSON object."""
    return {**setup, "interrupted": was_interrupted, "rows": [_describe_row(row) for row in rows]}


def _describe_row(row: Row) -> dict[str, object]:
    seconds = row.seconds
    return {
        "width": row.size[0],
        "height": row.size[1],
        "at_once": row.at_once,
        "planned_pictures": row.planned,
        "first_seconds": row.first,
        "picture_seconds": [each.seconds for each in row.pictures],
        "median_seconds": None if seconds is None else seconds[0],
        "wall_seconds": row.wall,
        "pictures_per_minute": row.pictures_per_minute,
        "evaluations": row.evaluations,
        "evaluations_per_second": row.evaluations_per_second,
        "stage_seconds_per_picture": row.stages,
        "peak_memory_bytes": dict(row.memory),
        "failure": row.failure,
    }


def format_number(value: float | None) -> str:
    """Return a number with three significant digits, but no more than three after the point, and all before it."""
    if value is None:
        return "-"
    decimals = 3 if value < 1 else max(0, 3 - len(str(int(value))))
    return f"{value:.{decimals}f}"


def _format_memory(memory: Mapping[str, int]) -> str:
    """Return the memory that a row needed: what torch has reserved of a GPU's, else what the process had."""
    size = memory.get("reserved", memory.get("resident"))
    return "-" if size is None else f"{format_number(size / 2**30)} GiB"


def _join(cells: Sequence[str]) -> str:
    """Return cells side by side in columns, the first to the left."""
    aligned = (
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return "  ".join(aligned).rstrip()
