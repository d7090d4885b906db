#!/usr/bin/env bash
# A full-size SDXL model of random weights on this machine's GPU: fp16 against fp32, then seconds for a picture of
# 832x1216 in 28 steps with CFG, beside plain diffusers and beside the floor of its floating-point operations.
# One command, under ten minutes: benchmarks/gpu.sh [--small] [--out FILE]; --small runs the same path on a CPU.
# Packages may be carried as wheels: put them in .whl/ and they are installed without an index.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -d .whl ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m benchmarks.gpu "$@"
