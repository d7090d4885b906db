"""Claim: the director tools do on an image of the demo model what their names say.

Every tool is asked through the API of a server in this process. Measured: the share of inked pixels of the line
drawing, how much of the cut-out is transparent, and how far `emotion` and `declutter` change the image on average. The
sheet in docs/ shows all pictures.
Run: python -m benchmarks.director [--seed 11].
"""

import argparse
import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from benchmarks.machine import machine
from benchmarks.onnx_networks import write_matting_network
from server.app import create_app
from server.cli.bootstrap import build_app_state
from server.config.catalog import ToolFile, ToolFiles, choose_catalog
from server.config.settings import Settings
from server.engine.model import detect_model

HERE = Path(__file__).parent
SIZE = 384, 512
PROMPT = "1girl, solo, {} hair, long hair, blue eyes, smile, {} shirt, {} background, upper body"
CHECKERS = 16
"""Side of the squares behind a transparent picture."""


def start(folder: Path) -> TestClient:
    """Return a client of a server with the demo model and a matting network."""
    catalog = choose_catalog(Settings(), None, demo=True, weights=None)
    tools = ToolFiles(matting=ToolFile(path=write_matting_network(folder / "corners.onnx", 512)))
    model = detect_model(catalog.model_copy(update={"tools": tools}))
    state = build_app_state(model, Settings(signing_key=folder / "signing.pem"))
    return TestClient(create_app(state), base_url="http://127.0.0.1:4242")


def ask(client: TestClient, path: str, body: dict[str, Any]) -> Image.Image:
    """Send a request and return its first picture."""
    response = client.post(f"/ai/{path}", json=body, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    return Image.open(BytesIO(response.content))


def encode(image: Image.Image) -> str:
    """Return a picture, with its metadata, in Base64."""
    file = cast("Any", image).fp
    file.seek(0)
    return b64encode(file.read()).decode()


def make_pictures(client: TestClient, seed: int) -> dict[str, Image.Image]:
    """Return the image and what each tool makes of it."""
    parameters = {"width": SIZE[0], "height": SIZE[1], "seed": seed, "qualityToggle": True, "ucPreset": 1}
    sent = {"input": PROMPT.format("red", "green", "white"), "parameters": parameters}
    image = encode(source := ask(client, "generate-image", sent))
    lineart = encode(lines := ask(client, "augment-image", {"req_type": "lineart", "image": image}))

    def augment(tool: str, image: str = image, prompt: str = "") -> Image.Image:
        body = {"req_type": tool, "image": image, "prompt": prompt, "seed": 1}
        return ask(client, "augment-image", body)

    return {
        "source": source,
        "lineart": lines,
        "sketch": augment("sketch"),
        "bg-removal": augment("bg-removal"),
        "colorize": augment("colorize", lineart, PROMPT.format("blonde", "red", "blue")),
        "emotion": augment("emotion", prompt="sad;;"),
        "declutter": augment("declutter"),
        "canny": ask(client, "annotate-image", {"model": "canny", "parameters": {"image": image}}),
    }


def lay_on_checkers(image: Image.Image) -> Image.Image:
    """Return a picture over gray squares where it is transparent."""
    rows, columns = (np.arange(side) // CHECKERS for side in (image.height, image.width))
    squares = np.where((rows[:, None] + columns) % 2, 235, 205).astype(np.uint8)
    background = Image.fromarray(squares).convert("RGBA")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def main() -> None:
    """Ask all tools, and write the results and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    seed = parser.parse_args().seed
    with TemporaryDirectory() as folder, start(Path(folder)) as client:
        client.app.state.naiad.engine.wait_ready()  # pyright: ignore[reportAttributeAccessIssue]
        pictures = make_pictures(client, seed)
    planes = {name: np.asarray(image.convert("RGB"), np.float32) for name, image in pictures.items()}
    results = {
        "inked": round(float((planes["lineart"] < 128).mean()), 4),
        "transparent": round(float((np.asarray(pictures["bg-removal"])[..., 3] < 16).mean()), 3),
        "changed": {
            name: round(float(np.abs(planes[name] - planes["source"]).mean()), 1)
            for name in ("emotion", "declutter")
        },
        "machine": machine(),
    }
    print(json.dumps(results, indent=2))
    (HERE / "results" / "director.json").write_text(json.dumps(results, indent=2) + "\n")
    shown = (
        lay_on_checkers(image).resize((288, 384), Image.Resampling.LANCZOS) for image in pictures.values()
    )
    small = [np.asarray(image) for image in shown]
    sheet = np.concatenate([np.concatenate(small[:4], axis=1), np.concatenate(small[4:], axis=1)])
    Image.fromarray(sheet).save(HERE.parent / "docs" / "director.webp", quality=88)


if __name__ == "__main__":
    main()
