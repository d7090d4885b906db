#!/usr/bin/env bash
# A full-size SDXL model with random weights on this machine's GPU: the error of fp16 against fp32, then the seconds for
# an image of 832x1216 with 28 steps and CFG, compared with plain diffusers and with the lower bound given by its FLOPs.
# Takes less than ten minutes: benchmarks/gpu.sh [--small] [--out FILE]; --small runs the same code on a CPU.
# Without network: wheels in .whl/ are installed without an index.
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
