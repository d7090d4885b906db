"""Claim: no picture file makes the server fail or keeps it busy: no status of 500 or more, and no answer after 3 s.

Posts every file of some folders, in any format, to each endpoint that takes a picture of `naiad serve --demo`: as init
image, as mask, to be upscaled, to a director tool and to an annotator, a few of them as parts of a form. Meant for the
test pictures of image libraries: PngSuite, and `Tests/images` of Pillow.
Run: python -m benchmarks.corpora FOLDER ... [--save]; four minutes for 1200 files.
"""

import argparse
import json
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.attack_server import Server
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "corpora.json"
ROOT = Path(__file__).parents[1]
LONGEST = 3.0
"""Seconds within which each answer is wanted."""
SIZE = {"width": 64, "height": 64, "steps": 1, "seed": 1}
SHOWN = 5


def build_bodies(picture: bytes) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the requests that hold a picture, by name: path and JSON body."""
    file = BytesIO()
    Image.new("RGB", (64, 64), "gray").save(file, "PNG")
    plain, text = b64encode(file.getvalue()).decode(), b64encode(picture).decode()
    generate, infill = "/ai/generate-image", {"image": plain, "mask": text}
    return {
        "image": (generate, {"action": "img2img", "parameters": SIZE | {"image": text}}),
        "mask": (generate, {"action": "infill", "parameters": SIZE | infill}),
        "upscale": ("/ai/upscale", {"image": text, "scale": 2}),
        "lineart": ("/ai/augment-image", {"req_type": "lineart", "image": text}),
        "canny": ("/ai/annotate-image", {"model": "canny", "parameters": {"image": text}}),
    }


def post_all(client: httpx.Client, files: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield what became of each file at each endpoint."""
    for number, file in enumerate(files):
        picture = file.read_bytes()
        for name, (path, body) in build_bodies(picture).items():
            started = time.monotonic()
            response = client.post(path, json=body)
            yield {
                "file": file.name,
                "endpoint": name,
                "status": response.status_code,
                "seconds": round(time.monotonic() - started, 3),
                "message": "" if response.is_success else response.json()["message"][:120],
            }
        if number % 10 == 0:
            yield post_form(client, file.name, picture)


def post_form(client: httpx.Client, name: str, picture: bytes) -> dict[str, Any]:
    """Post a picture as part of a form, and return what became of it."""
    request = json.dumps({"action": "img2img", "parameters": SIZE | {"image": "image"}})
    parts = {"image": ("blob", picture, "image/png"), "request": ("blob", request, "application/json")}
    started = time.monotonic()
    status = client.post("/ai/generate-image", files=parts).status_code
    seconds = round(time.monotonic() - started, 3)
    return {"file": name, "endpoint": "form", "status": status, "seconds": seconds, "message": ""}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the number of answers by status for each endpoint, the slowest, and those that break the claim."""
    slowest = sorted(rows, key=lambda row: row["seconds"], reverse=True)[:SHOWN]
    return {
        "files": len({row["file"] for row in rows}),
        "statuses": {
            name: dict(Counter(row["status"] for row in rows if row["endpoint"] == name))
            for name in dict.fromkeys(row["endpoint"] for row in rows)
        },
        "failed": [row for row in rows if row["status"] >= 500],
        "slow": [row for row in rows if row["seconds"] > LONGEST],
        "slowest": slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    files = sorted(file for folder in options.folders for file in folder.rglob("*") if file.is_file())
    server = Server(ROOT)
    try:
        server.wait_ready()
        host, port = server.address
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            rows = list(post_all(client, files))
    finally:
        server.process.kill()
    summary = summarize(rows)
    print(json.dumps(summary, indent=1))
    if options.save:
        RESULTS.write_text(json.dumps({"machine": machine(), **summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
