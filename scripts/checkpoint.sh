#!/usr/bin/env bash
# Candidates for the checkpoint that the package ships. Held out, always: four articles of dev, every third paper.
# usage: DATA=... ENCODER=... scripts/checkpoint.sh WORK plain|long|spans
set -euo pipefail
work=$1 kind=$2
run="${LONGFORMER:-.venv/bin/longformer}"
make="${PYTHON:-.venv/bin/python} scripts/squad_data.py"
limit=${STEPS:+--max-steps $STEPS}
mkdir -p "$work"
titles="--title Doctor_Who --title Force --title Pharmacy --title Warsaw"
# What is killed half-way leaves things called *.part alone, which are made again.
# shellcheck disable=SC2086
if [ ! -e "$work/spans.json" ]; then
  $make split "$DATA/squad-v1.1-dev-part.json" "$work/dev-train.json" "$work/dev-held.json" $titles
  $make split "$DATA/xquad-en.json" "$work/xquad-other.json" "$work/xquad-held.json" $titles
  $make split "$DATA/covid-qa.json" "$work/covid-train.json" "$work/covid-held.json"
  # To choose by, of the articles trained on: what is chosen by cannot be reported.
  $make split "$work/dev-train.json" "$work/train.json" "$work/choose.json" --every 10
  $make lengthen "$work/train.json" "$work/long.json"
  $make spans "$work/train.json" "$DATA/squad-v1.1-train-part.json" "$work/covid-train.json" \
    longformer/data/constitution.txt -o "$work/spans.json.part"
  mv "$work/spans.json.part" "$work/spans.json"
fi
if [ ! -e "$work/encoder" ]; then
  rm -rf "$work/encoder.part"
  $run convert --to-long "$ENCODER" "$work/encoder.part"
  mv "$work/encoder.part" "$work/encoder"
fi
squad="$work/train.json $DATA/squad-v1.1-train-part.json"
common="--precision bfloat16 --attention-dropout 0 --batch-size 16 --store float16 --evaluate-on $work/choose.json"
# shellcheck disable=SC2086
case $kind in
  plain)
    $run train qa "$work/encoder" "$work/plain" $squad $common --freeze embeddings --epochs 3 --learning-rate 2e-4 \
      $limit --resume ;;
  long)
    $run train qa "$work/encoder" "$work/long" $squad $common --freeze positions --epochs 9 --learning-rate 3e-4 \
      --layer-decay 0.85 --annotator random --patience 4 $limit --resume ;;
  spans)
    $run train qa "$work/encoder" "$work/spans-first" "$work/spans.json" $common --freeze positions --epochs 4 \
      --batch-size 32 --learning-rate 3e-4 $limit --resume
    $run train qa "$work/spans-first" "$work/spans" $squad "$work/long.json" "$work/covid-train.json" $common \
      --freeze positions --epochs 4 --learning-rate 2e-4 --layer-decay 0.85 --annotator random --patience 4 \
      --max-length 2048 --empty-windows 1 --evaluate-every 500 $limit --resume ;;
  *) echo "no such candidate: $kind" >&2; exit 2 ;;
esac
