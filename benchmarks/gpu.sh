#!/usr/bin/env bash
# A full-size SDXL model with random weights on this machine's GPU. The part `image`: the error of fp16 against fp32, then
# the seconds for an image of 832x1216 with 28 steps and CFG, compared with plain diffusers and with the lower bound given
# by its FLOPs; less than ten minutes. The part `load`: shared and exact passes compared with a server that draws one
# picture after another with diffusers; as long again for each round.
# benchmarks/gpu.sh [--small] [--out FILE]; --small runs the same code on a CPU. PARTS=image or PARTS=load runs one part,
# ROUNDS=3 the second one more often, CHECKPOINT=FILE with other weights; it writes FILE-load.json next to FILE.json.
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
size=(--full ${CHECKPOINT:+"$CHECKPOINT"})
out=()
previous=
for argument in "$@"; do
  if [ "$argument" = --small ]; then size=(--small); fi
  if [ "$previous" = --out ]; then out=(--out "${argument%.json}-load.json"); fi
  previous=$argument
done
for part in ${PARTS:-image load}; do
  case $part in
    image) "$python" -m benchmarks.gpu "$@" ;;
    load) "$python" -m benchmarks.batching "${size[@]}" --rounds "${ROUNDS:-1}" "${out[@]}" ;;
    *) echo "PARTS: $part is not image or load" >&2; exit 2 ;;
  esac
done
