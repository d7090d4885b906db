#!/usr/bin/env bash
# What SDXL takes on this machine's GPU, in about ten minutes. Parts:
#   image    half precision against fp32; images with naiad, diffusers and compiled diffusers, against the lower bound
#            that their FLOPs give; 1, 4 and 8 images at once (benchmarks.gpu)
#   options  each speed option, alone and on top of the others (benchmarks.speed_options)
#   memory   the memory plans of cards with 24 to 6 GB (benchmarks.memory_modes)
#   start    from the file to the first picture, by part (benchmarks.start)
#   bench    `naiad bench` with 1, 4 and 8 clients, exact and shared
#   load     shared and exact passes compared with a server that draws one picture after another with diffusers; takes as
#            long as all others together, so it runs only if PARTS names it (benchmarks.batching)
# benchmarks/gpu.sh [--small] [--out FOLDER]; --small runs the same code with small networks, on a CPU too. PARTS="image
# options" runs some of the parts, CHECKPOINT=FILE draws with other weights than random ones in all parts with a file.
# Without network: wheels in .whl/ are installed without an index.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
small=()
folder=benchmarks/results
while [ $# -gt 0 ]; do
  case $1 in
    --small) small=(--small) ;;
    --out) folder=$2; shift ;;
    *) echo "$1 is not --small or --out FOLDER" >&2; exit 2 ;;
  esac
  shift
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -d .whl ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$scratch/site" .whl/*.whl
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export NAIAD_SIGNING_KEY=$scratch/signing.pem TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}
device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
name=${small:+small-}$device
checkpoint=${CHECKPOINT:-}

need_checkpoint() {
  [ -z "$checkpoint" ] || return 0
  if [ -n "${small[*]}" ]; then
    checkpoint=$("$python" -c 'from demo.checkpoint import DEMO; print(DEMO)')
  else
    checkpoint=$scratch/fullsize.safetensors
    "$python" -m benchmarks.fullsize --write "$checkpoint"
  fi
}

bench() { # the name of the results, and the batching
  local options=(--sizes "${small:+256x256}")
  [ -n "${small[*]}" ] || options=(--sizes 832x1216,1024x1024)
  NAIAD_ENGINE_BATCHING=$2 "$python" -m server bench "$checkpoint" "${options[@]}" --concurrency 1,4,8 \
    ${small:+--steps 4} --json "$folder/$1-$name.json" --force
}

for part in ${PARTS:-image options memory start bench}; do
  case $part in
    image) "$python" -m benchmarks.gpu "${small[@]}" --out "$folder/gpu-$name.json" ;;
    options) "$python" -m benchmarks.speed_options "${small[@]}" --out "$folder/speed_options-$name.json" ;;
    memory) need_checkpoint
      "$python" -m benchmarks.memory_modes "$checkpoint" "${small[@]}" --out "$folder/memory_modes-$name.json" ;;
    start) need_checkpoint
      "$python" -m benchmarks.start --file "$checkpoint" --device "$device" --rounds 1 --picture \
        --out "$folder/start-$name.json" ;;
    bench) need_checkpoint
      bench bench_exact exact
      bench bench_shared shared ;;
    load) size=(--full ${CHECKPOINT:+"$CHECKPOINT"})
      "$python" -m benchmarks.batching "${small[@]:-${size[@]}}" --rounds "${ROUNDS:-1}" --out "$folder/load-$name.json" ;;
    *) echo "PARTS: $part is not image, options, memory, start, bench or load" >&2; exit 2 ;;
  esac
done
