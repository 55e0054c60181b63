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

# What is killed half-way leaves things called *.part alone, which are made again.
# usage: convert SOURCE TO [OPTION...]
convert() {
  local to=$2
  [ -e "$to" ] && return
  rm -rf "$to.part"
  $run convert --to-long "$1" "$to.part" "${@:3}"
  mv "$to.part" "$to"
}

if [ ! -e "$work/train.jsonl" ]; then
  mkdir -p "$work/texts.part"
  # shellcheck disable=SC2086
  $python scripts/text_data.py "$DATA" "$work/texts.part" $held
  mv "$work/texts.part/held.jsonl" "$work/texts.part/train.jsonl" "$work"  # the one that is looked for last
fi
common="--precision bfloat16 --attention-dropout 0"
held_out="--evaluate-on $work/held.jsonl"

# 1. The encoder at hand has no masked-LM head: train one, on texts of 512 tokens under full attention. Positions stay.
convert "$ENCODER" "$work/short" --max-tokens 512 --attention-window 1022
# shellcheck disable=SC2086
$run train mlm "$work/short" "$work/short-mlm" "$work/train.jsonl" $held_out --max-length 512 --batch-size 16 \
  --epochs "${EPOCHS:-5}" --learning-rate 3e-4 --freeze positions $common $limit --resume

# 2. Make it long, positions random and copied.
for positions in random copied; do
  convert "$work/short-mlm" "$work/$positions" --keep lm_head --positions $positions
done

# 3. Train the copied ones further at full length.
# shellcheck disable=SC2086
$run train mlm "$work/copied" "$work/trained" "$work/train.jsonl" $held_out --max-length 4096 $common \
  --epochs "${LONG_EPOCHS:-2}" --learning-rate 1e-4 $limit --resume

# 4. Bits per token, in rows of 4,096 tokens, and of the short model in rows of 512.
for model in random copied trained; do
  echo "$model: $($run evaluate-mlm "$work/$model" "$work/held.jsonl" --max-length 4096)"
done
echo "short-mlm: $($run evaluate-mlm "$work/short-mlm" "$work/held.jsonl" --max-length 512)"
