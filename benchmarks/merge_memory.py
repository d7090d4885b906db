"""Claim: three full-size SDXL models are merged in 3 GB of memory, a small part of the bytes read and written.

Makes an inpainting UNet, a fine-tune with all its parts and a base UNet in float16 in the real single-file layout;
their tensors are holes on the disk, since memory does not depend on values. Another process merges them and reports its
peak memory, its libraries included. The result takes 6.94 GB of disk.
Run: python -m benchmarks.merge_memory [--folder DIR].
"""

import argparse
import json
import re
import struct
import subprocess
import sys
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import machine
from pipelines.weights.checkpoint import UNET_PREFIX

RESULTS = Path(__file__).parent / "results"
CONV_IN = f"{UNET_PREFIX}input_blocks.0.0.weight"
LIMIT = 3000  # MB


def hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a float16 file with the right header and size, whose tensors are holes on the disk."""
    header, start = {}, 0
    for key, shape in shapes.items():
        size = 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return path


def write_sources(folder: Path) -> list[Path]:
    """Write the inpainting model, the fine-tune and the base."""
    from benchmarks.fullsize import stored_shapes

    full = stored_shapes()
    unet = {key: shape for key, shape in full.items() if key.startswith(UNET_PREFIX)}
    inpaint = unet | {CONV_IN: (320, 9, 3, 3)}
    models = {"inpaint": inpaint, "fine-tune": full, "base": unet}
    return [hollow(folder / f"{name}.safetensors", shapes) for name, shapes in models.items()]


def peak_memory() -> float:
    """Return the peak memory of this process in MB.

    Not `getrusage`: a new process inherits the value of the one that started it.
    """
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6


def measure_merge(paths: list[Path]) -> dict[str, object]:
    """Merge three models into a fourth file in this process, and measure it."""
    from pipelines.weights.merge import merge_inpainting

    before = peak_memory()
    report = merge_inpainting(*paths)
    return {
        "summed": report.summed,
        "copied": report.copied,
        "channels": report.detection.channels,
        "gigabytes_read": round(sum(path.stat().st_size for path in paths[:3]) / 1e9, 2),
        "gigabytes_written": round(report.output.stat().st_size / 1e9, 2),
        "megabytes_before": round(before),
        "megabytes_at_most": round(peak_memory()),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder for the temporary files")
    parser.add_argument("--merge", type=Path, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge:
        print(json.dumps(measure_merge(args.merge)))
        return
    with TemporaryDirectory(dir=args.folder) as folder:
        paths = [*write_sources(Path(folder)), Path(folder) / "result.safetensors"]
        command = [sys.executable, "-m", "benchmarks.merge_memory", "--merge", *map(str, paths)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    result["within_limit"] = result["megabytes_at_most"] < LIMIT
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:40} {value}")
    (RESULTS / "merge_memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
