#!/usr/bin/env bash
# Exact match and F1 with intervals on what no candidate was trained on or chosen by.
# usage: scripts/measure.sh MODEL WORK
set -euo pipefail
run="${LONGFORMER:-.venv/bin/longformer}"
for held in dev-held xquad-held covid-held; do
  echo "$held"
  "$run" evaluate "$2/$held.json" --model "$1" ${LIMITS:-}
done
echo "covid-held, in windows of 512 tokens"
"$run" evaluate "$2/covid-held.json" --model "$1" --max-length 512
