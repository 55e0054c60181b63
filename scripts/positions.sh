#!/usr/bin/env bash
# Masked-LM bits per token with random, copied and further trained positions, as the paper's table 5 has them.
# usage: DATA=... ENCODER=... scripts/positions.sh WORK
set -euo pipefail
work=$1
run="${LONGFORMER:-.venv/bin/longformer}"
mkdir -p "$work"
limit=${STEPS:+--max-steps $STEPS}
python="${PYTHON:-.venv/bin/python}"
held="--title Doctor_Who --title Force --title Pharmacy --title Warsaw"
[ -e "$work/train.jsonl" ] || $python scripts/text_data.py "$DATA" "$work" $held
common="--precision bfloat16 --attention-dropout 0"
held_out="--evaluate-on $work/held.jsonl"

# 1. The encoder at hand has no masked-LM head: train one, on texts of 512 tokens under full attention. Positions stay.
[ -e "$work/short" ] || $run convert --to-long "$ENCODER" "$work/short" --max-tokens 512 --attention-window 1022
# shellcheck disable=SC2086
$run train mlm "$work/short" "$work/short-mlm" "$work/train.jsonl" $held_out --max-length 512 --batch-size 16 \
  --epochs "${EPOCHS:-12}" --learning-rate 3e-4 --freeze positions $common $limit --resume

# 2. Make it long, positions random and copied; both are measured as they are by one step at a rate of nothing.
for positions in random copied; do
  [ -e "$work/$positions" ] || $run convert --to-long "$work/short-mlm" "$work/$positions" --keep lm_head \
    --positions $positions
  # shellcheck disable=SC2086
  $run train mlm "$work/$positions" "$work/$positions-measured" "$work/train.jsonl" $held_out --max-length 4096 \
    $common --learning-rate 1e-12 --max-steps 1 --resume
done

# 3. Train the copied ones further at full length.
# shellcheck disable=SC2086
$run train mlm "$work/copied" "$work/trained" "$work/train.jsonl" $held_out --max-length 4096 $common \
  --epochs "${LONG_EPOCHS:-6}" --learning-rate 1e-4 $limit --resume
grep -H bits_per_token "$work"/{short-mlm,random-measured,copied-measured,trained}/log.jsonl
