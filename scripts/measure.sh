#!/usr/bin/env bash
# Exact match and F1 with intervals on what no candidate was trained on or chosen by.
# usage: [LIMIT=N] [DTYPE=mixed] scripts/measure.sh MODEL WORK
set -euo pipefail
model=$1 work=$2
run="${LONGFORMER:-.venv/bin/longformer}"

# Answers are kept beside the model: those that are there are whole, since `predict` writes a file whole or not at all.
# They are made again where the weights or the questions are newer than they.
# usage: measure HELD NAME [OPTION...]
measure() {
  local questions="$work/$1.json" answers="$model/answers-$2${DTYPE:+-$DTYPE}${LIMIT:+-$LIMIT}.json"
  shift 2
  if [ ! -e "$answers" ] || [ "$model/model.safetensors" -nt "$answers" ] || [ "$questions" -nt "$answers" ]; then
    "$run" predict "$questions" -o "$answers" --model "$model" ${LIMIT:+--limit "$LIMIT"} \
      ${DTYPE:+--dtype "$DTYPE"} "$@"
  fi
  "$run" evaluate "$questions" --predictions "$answers"
}

if [ ! -e "$work/dev-held-whole.json" ]; then
  ${PYTHON:-.venv/bin/python} scripts/squad_data.py whole "$work/dev-held.json" "$work/dev-held-whole.json" --every 4
fi
for held in dev-held dev-held-whole xquad-held covid-held; do
  echo "$held"
  measure "$held" "$held"
done
echo "covid-held, in windows of 512 tokens"
measure covid-held covid-held-512 --max-length 512
