#!/usr/bin/env bash
# Trains for every M, one run after another; those that are finished are left alone.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/sweep.sh [train arguments]

  launch/sweep.sh                                        # all ten M, embedded preset
  M="8 16" launch/sweep.sh --config.optim.steps=50
  PRESET=smol LAUNCH="launch/local.sh 2" launch/sweep.sh
  PRESET=paper SUBMIT=1 LAUNCH="sbatch --nodes=4 launch/slurm.sbatch" launch/sweep.sh

Runs are in RUNS/m<M>-<preset>, as the training command names them. The same command
goes on with what was interrupted. Ends with a table; the status is 0 when all runs are
finished, that of the first run which failed, or 75 when it was interrupted.

From the environment:
  M           the numbers of queries   1 8 16 32 64 128 256 384 512 768
  PRESET      embedded, smol, paper    embedded
  STAGE       align, finetune, adapt   adapt
  INPUTS      vqq, vq                  vqq
  RUNS        folder of the runs, from the repository's root   runs
  LAUNCH      the command before the train arguments   python -m vtscale_jax.train
  SUBMIT=1    LAUNCH only queues a run: start the next one without waiting for its end
  KEEP_GOING=1   start the next run when one has failed
TEXT
}

for word in "$@"; do
  case $word in
    -h | --help) usage && exit ;;
    --config | --config=* | --workdir | --workdir=*)
      echo "error: $word is set for each run; see M, PRESET, STAGE, INPUTS, RUNS" >&2
      usage >&2
      exit 2
      ;;
  esac
done

read -ra sizes <<<"${M:-1 8 16 32 64 128 256 384 512 768}"
preset=${PRESET:-embedded} stage=${STAGE:-adapt} inputs=${INPUTS:-vqq} runs=${RUNS:-runs}
read -ra launch <<<"${LAUNCH:-python -m vtscale_jax.train}"
cd "$(dirname "${BASH_SOURCE[0]}")/.." # where configs/ is
for size in "${sizes[@]}"; do
  if [[ ! -f configs/m$size.py ]]; then
    echo "error: M has $size, and there is no configs/m$size.py" >&2
    exit 2
  fi
done

# As config.name; tests/test_launch.py compares them.
suffix=$preset
if [[ $stage != adapt ]]; then suffix+=-$stage; fi
if [[ $inputs != vqq ]]; then suffix+=-$inputs; fi

state() { # run folder: what is known of it, from its manifest
  if grep -Eqs '^  "finished": true,?$' "$1/manifest.json"; then
    echo finished
  elif [[ -e $1/manifest.json ]]; then
    echo interrupted
  else
    echo "not started"
  fi
}

# Job control: the run is in a group of its own, and a Ctrl-C comes to it once.
set -m
run="" stopping=""
pass_on() { # signal
  stopping=1
  if [[ -n $run ]]; then kill -s "$1" "$run" 2>/dev/null || true; fi
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1

failed=0
declare -A outcome
for size in "${sizes[@]}"; do
  folder=$runs/m$size-$suffix
  if [[ $(state "$folder") == finished ]]; then
    echo "== M = $size: finished already, $folder"
    continue
  fi
  if [[ -n $stopping ]]; then break; fi
  echo "== M = $size: $folder"
  "${launch[@]}" --config "configs/m$size.py:$preset,stage=$stage,inputs=$inputs" \
    --workdir "$folder" "$@" </dev/null &
  run=$!
  while kill -0 "$run" 2>/dev/null; do wait "$run" || true; done # a trap ends wait
  status=0
  wait "$run" || status=$? # bash remembers it
  run=""
  if ((status)) && [[ -z $stopping ]]; then
    outcome[$size]="failed with status $status"
    if ((!failed)); then failed=$status; fi
    if [[ -z ${KEEP_GOING:-} ]]; then break; fi
  elif [[ -z ${SUBMIT:-} && $(state "$folder") != finished ]]; then
    stopping=1 # the run was told to save and end, and so was the sweep
  elif [[ -n ${SUBMIT:-} ]]; then
    outcome[$size]=queued
  fi
done

unfinished=0
printf '\n%5s  %-30s %s\n' M run state
for size in "${sizes[@]}"; do
  folder=$runs/m$size-$suffix
  if [[ $(state "$folder") != finished ]]; then unfinished=$((unfinished + 1)); fi
  printf '%5s  %-30s %s\n' "$size" "$folder" "${outcome[$size]:-$(state "$folder")}"
done
if ((failed)); then exit "$failed"; fi
if ((unfinished)) && [[ -z ${SUBMIT:-} ]]; then
  echo "interrupted; the same command goes on"
  exit 75
fi
