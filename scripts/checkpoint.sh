#!/usr/bin/env bash
# Candidates for the checkpoint that the package ships. Held out, always: four articles of dev, every third paper.
# usage: DATA=... ENCODER=... scripts/checkpoint.sh WORK plain|mixed|spans, or long after mixed
#        DATA=... ENCODER=... WRITER=... WIKIPEDIA=... scripts/checkpoint.sh WORK written, after mixed
#        DATA=... FIRST=... scripts/checkpoint.sh WORK further|further-plain
set -euo pipefail
work=$1 kind=$2
run="${LONGFORMER:-.venv/bin/longformer}"
make="${PYTHON:-.venv/bin/python} scripts/squad_data.py"
limit="${STEPS:+--max-steps $STEPS} ${DEVICE:+--device $DEVICE --batch-tokens 32768}"
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
    longformer/data/constitution.txt -o "$work/spans.json"
fi
if [[ $kind != further* ]] && [ ! -e "$work/encoder" ]; then
  rm -rf "$work/encoder.part"
  $run convert --to-long "$ENCODER" "$work/encoder.part"
  mv "$work/encoder.part" "$work/encoder"
fi
squad="$work/train.json $DATA/squad-v1.1-train-part.json"
common="--precision bfloat16 --attention-dropout 0 --store float16 --evaluate-on $work/choose.json"
every_other() {
  [ -e "$work/half.json" ] || $make split "$work/covid-train.json" "$work/rest.json" "$work/half.json" --every 2
}
# shellcheck disable=SC2086
case $kind in
  plain)
    $run train qa "$work/encoder" "$work/plain" $squad $common --freeze embeddings --epochs 3 --batch-size 16 \
      --learning-rate 2e-4 $limit --resume ;;
  mixed)
    $run train qa "$work/encoder" "$work/mixed" $squad "$work/covid-train.json" $common --freeze embeddings --epochs 5 \
      --batch-size 24 --learning-rate 3e-4 --annotator random --empty-windows 0 --evaluate-every 200 $limit --resume ;;
  spans)
    $run train qa "$work/encoder" "$work/spans-first" "$work/spans.json" $common --freeze positions --epochs 4 \
      --batch-size 32 --learning-rate 3e-4 $limit --resume
    $run train qa "$work/spans-first" "$work/spans" $squad "$work/long.json" "$work/covid-train.json" $common \
      --freeze positions --epochs 4 --batch-size 16 --learning-rate 2e-4 --layer-decay 0.85 --annotator random --patience 4 \
      --max-length 2048 --empty-windows 1 --evaluate-every 500 $limit --resume ;;
  long)
    [ -e "$work/mixed/model.safetensors" ] || { echo "make mixed first: it is trained further" >&2; exit 2; }
    every_other
    [ -e "$work/longer.json" ] || $make lengthen "$work/train.json" "$work/longer.json" --share 0.3 --paragraphs 14
    $run train qa "$work/mixed" "$work/long" "$work/train.json" "$work/longer.json" "$work/half.json" \
      --precision bfloat16 --attention-dropout 0 --freeze embeddings --batch-size 24 --annotator random --empty-windows 0 \
      --epochs 1 --learning-rate 1.5e-4 --max-length 2048 --seed 2 --store float16 $limit --resume ;;
  further | further-plain) # on all articles not held out: the first weights were, so that none is left to choose by
    : "${FIRST:?the checkpoint to train further, a folder}"
    squad="$work/dev-train.json $DATA/squad-v1.1-train-part.json"
    same="--precision bfloat16 --attention-dropout 0 --freeze embeddings --learning-rate 2e-4 --store float16"
    same="$same --batch-size 24 --epochs 2"
    if [ "$kind" = further-plain ]; then
      $run train qa "$FIRST" "$work/further-plain" $squad $same --seed 2 $limit --resume
    else
      every_other
      [ -e "$work/longer-all.json" ] ||
        $make lengthen "$work/dev-train.json" "$work/longer-all.json" --share 0.3 --paragraphs 14
      for seed in 2 3 4 5; do
        $run train qa "$FIRST" "$work/further-$seed" $squad "$work/longer-all.json" "$work/half.json" $same \
          --annotator random --empty-windows 0 --max-length 2048 --seed $seed $limit --resume
      done
      ${PYTHON:-.venv/bin/python} scripts/average.py "$work/further" "$work"/further-[2-5]
    fi ;;
  written)
    if [ ! -e "$work/written.json" ]; then
      : "${WRITER:?the language model, a .gguf file}" "${WIKIPEDIA:?a dump, .xml.bz2}"
      [ -e "$work/mixed/model.safetensors" ] || { echo "make mixed first: it reads what is written" >&2; exit 2; }
      questions="${PYTHON:-.venv/bin/python} scripts/questions.py"
      papers="$work/covid-train.json" unread="$work/unread.json"
      [ -e "$work/passages.json" ] || $questions passages "$WIKIPEDIA" "$work/passages.json" ${titles//--title/--without} \
        --without Normans --without Ctenophora --without University_of_Chicago  # which are chosen by
      if [ ! -e "$work/writer" ]; then
        rm -rf "$work/writer.part"
        $questions tune "$WRITER" "$work/writer.part" $squad
        mv "$work/writer.part" "$work/writer"
      fi
      [ -e "$unread" ] || $questions write "$work/writer" "$unread" "$work/passages.json" "$papers"
      $run predict "$unread" -o "$work/unread-answers.json" --model "$work/mixed" --dtype mixed
      $questions keep "$work/written.json" "$unread" --predictions "$work/unread-answers.json"
    fi
    same="--precision bfloat16 --attention-dropout 0 --freeze embeddings --batch-size 24 --annotator random --empty-windows 0"
    $run train qa "$work/mixed" "$work/written-first" $squad "$work/covid-train.json" "$work/written.json" $same \
      --epochs 2 --learning-rate 2e-4 $limit --resume
    $run train qa "$work/written-first" "$work/written" $squad "$work/covid-train.json" $same --epochs 2 --warmup 0.05 \
      --learning-rate 1.2e-4 --seed 1 --store float16 --evaluate-on "$work/choose.json" --evaluate-every 260 $limit \
      --resume ;;
  *) echo "no such candidate: $kind" >&2; exit 2 ;;
esac
