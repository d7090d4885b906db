"""Claim: the semantic tests of the demo model detect a broken pipeline.

Each mutation changes one line in a copy of the sources and runs tests/end_to_end/test_semantics.py, which must fail.
Run: python -m benchmarks.demo_mutations [NAMES].
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo_mutations.json"
MUTATIONS = {
    "prediction type: velocity with the other sign": (
        "pipelines/sampling/prediction.py",
        '"v": v_to_x0',
        '"v": lambda output, x, sigma: v_to_x0(-output, x, sigma)',
    ),
    "prediction type: output taken for x0": (
        "pipelines/sampling/prediction.py",
        "        return -output\n",
        "        return output\n",
    ),
    "noise table without zero terminal SNR": (
        "pipelines/sampling/prediction.py",
        "    if zsnr:\n",
        "    if not zsnr:\n",
    ),
    "time ids: crop and original size change places": (
        "pipelines/pipeline.py",
        "(pass_.height, pass_.width, 0, 0, pass_.height, pass_.width)",
        "(0, 0, pass_.height, pass_.width, pass_.height, pass_.width)",
    ),
    "time ids: all zero": (
        "pipelines/pipeline.py",
        "(pass_.height, pass_.width, 0, 0, pass_.height, pass_.width)",
        "(0, 0, 0, 0, 0, 0)",
    ),
    "pad ids: both encoders with 0": (
        "pipelines/weights/networks.py",
        "self.pad = config.pad",
        "self.pad = 0",
    ),
    "pad ids: both encoders with the end of text": (
        "pipelines/weights/networks.py",
        "self.pad = config.pad",
        "self.pad = EOS",
    ),
    "chunk order: the pooled vector of the last chunk": (
        "pipelines/text/encoding.py",
        "self._run_text_encoder(k, chunks[0])[1]",
        "self._run_text_encoder(k, chunks[-1])[1]",
    ),
    "chunk order: only the last chunk, many times": (
        "pipelines/text/encoding.py",
        "for chunk in filled])",
        "for chunk in filled[-1:] * length])",
    ),
    "encoders' features in the other order": (
        "pipelines/text/encoding.py",
        "torch.cat(features, dim=-1)",
        "torch.cat(features[::-1], dim=-1)",
    ),
    "last instead of penultimate hidden states": (
        "pipelines/weights/networks.py",
        "PENULTIMATE = 2",
        "PENULTIMATE = 1",
    ),
    "guidance with the other sign": (
        "pipelines/sampling/guidance.py",
        "x0=p.uncond + scale * (p.cond - p.uncond)",
        "x0=p.uncond - scale * (p.cond - p.uncond)",
    ),
    "prompt and negative prompt change places": (
        "pipelines/sampling/denoise.py",
        "        return self.embeddings.positive, negative\n",
        "        return negative, self.embeddings.positive\n",
    ),
    "latents decoded without their scale": (
        "pipelines/image/vae.py",
        "_iter_tiles(run, latents / self._scale, (1, 8), 3, self.tiling)",
        "_iter_tiles(run, latents * 0.13025, (1, 8), 3, self.tiling)",
    ),
}


def run_mutation(file: str, old: str, new: str) -> list[str]:
    """Return the names of the tests that fail after `old` is replaced by `new`.

    Raises:
        SystemExit: `file` does not contain `old` exactly once, or pytest could not run.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "naiad"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
        text = (copy / file).read_text("utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"{file} contains {old!r} {text.count(old)} times, not once")
        (copy / file).write_text(text.replace(old, new), "utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/end_to_end/test_semantics.py",
        ]
        environment = _build_environment(copy)
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, env=environment)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return re.findall(r"^FAILED \S+?::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)


def _build_environment(copy: Path) -> dict[str, str]:
    """Return an environment in which imports come from the copy."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> None:
    """Run the given mutations, or all, and save the names of the failed tests."""
    names = sys.argv[1:] or list(MUTATIONS)
    results = json.loads(RESULTS.read_text("utf-8"))["mutations"] if RESULTS.exists() else {}
    for name in names:
        results[name] = run_mutation(*MUTATIONS[name])
        print(f"{name}: {', '.join(results[name]) or 'NOT DETECTED'}", flush=True)
        RESULTS.write_text(json.dumps({"mutations": results, "machine": machine()}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
