#!/bin/sh
# Trains the LoRA on line NUMBER (from 0) of LIST, a text file with NAME FOLDER TRIGGER on each line.
#   sh one.sh LIST NUMBER [more options of lorakit train]
# Started again after a kill or a preemption it goes on; what is finished is left alone. Runs are made in $OUTPUT.
set -eu
list=$1
number=$2
shift 2
line=$(sed -n "$((number + 1))p" "$list")
if [ -z "$line" ]; then
  echo "$list has no line $number" >&2
  exit 2
fi
read -r name folder trigger <<END
$line
END
run=${OUTPUT:-runs}/$name
if [ -f "$run/$name.safetensors" ]; then
  echo "$name is finished"
elif [ -f "$run/plan.json" ]; then
  exec lorakit resume "$run"
else
  exec lorakit train --name "$name" --data "$folder" --trigger "$trigger" --output "${OUTPUT:-runs}" "$@"
fi
