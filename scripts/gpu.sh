#!/usr/bin/env bash
# Everything that wants a GPU, the most important first. Each part has a limit of its own, keeps what it has measured as
# it goes, and lets the next one begin whatever becomes of it. It wants the package with torch for the GPU, Triton,
# pytest and transformers installed.
#
#   scripts/gpu.sh OUT
#
# TESTS, ATTENTION, MODEL, THREADS: the limits in seconds; 0 leaves a part out. Together they take 13 minutes.
# REHEARSE=1: the same commands on a CPU, with tiny shapes and Triton's interpreter.
set -uo pipefail
out=$(mkdir -p "${1:?which folder shall the results be written into?}" && cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}

part() { # part NAME LIMIT COMMAND...: what it prints is kept in OUT/NAME.txt
  local name=$1 limit=$2 status=0
  shift 2
  [ "$limit" = 0 ] && return
  local start=$SECONDS
  timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.log" || status=$?
  echo "$name: exit status $status after $((SECONDS - start)) s" | tee -a "$out/parts.txt"
}

shapes=1x12x4096,4x16x16384,2x64x32768,4x16x16421
attention=(--shapes "$shapes" --windows 256 --head-dims 64 --dtypes bfloat16 --globals 0,64)
model=(--batches 1,16 --length 4096)
tests=(-m gpu tests/kernels tests/bench)
counts="1 2 4 8 16"
cpu=(--length 4096 --globals 0 --dtype float32 --rounds 5 --no-backward)
if [ -n "${REHEARSE:-}" ]; then
  export TRITON_INTERPRET=1
  attention=(--shapes 1x2x64,2x2x65 --windows 16 --head-dims 16 --dtypes float32 --globals 0,4 --rounds 1 --device cpu)
  model=(--batches 1,2 --length 64 --rounds 1 --device cpu --dtype float32 --config "${CONFIG:?a tiny config.json}")
  tests=(-m gpu tests/kernels/test_triton.py) # they are all skipped there
  counts="1 2"
  cpu=(--length 64 --rounds 1 --no-backward)
fi

: >"$out/parts.txt"
part tests "${TESTS:-210}" "$python" -m pytest -q -n 4 "${tests[@]}"
part attention "${ATTENTION:-300}" "$python" -m longformer bench gpu "${attention[@]}" --seconds 270 --json "$out/attention.json"
part model "${MODEL:-150}" "$python" -m longformer bench gpu-model "${model[@]}" --json "$out/model.json"
for count in $counts; do
  [ "$count" -le "$(nproc)" ] || break
  part "threads-$count" "${THREADS:-24}" "$python" -m longformer bench attention --threads "$count" "${cpu[@]}" \
    --json "$out/threads-$count.json"
done
