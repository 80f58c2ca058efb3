#!/usr/bin/env bash
# Starts N training processes on this machine, joined into one run.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh N [train arguments]

  launch/local.sh 2 --config configs/m16.py              # 2 GPUs; without, 2 CPU processes
  DEVICES=2 launch/local.sh 2 --config configs/m16.py    # 2 x 2 virtual CPU devices

Every process gets VTSCALE_COORDINATOR, VTSCALE_NUM_PROCESSES and VTSCALE_PROCESS_ID, and
an equal share of the GPUs (of CUDA_VISIBLE_DEVICES where that is set). Lines of output
begin with the number of their process. SIGTERM and SIGUSR1, at which training saves and
ends, are passed on, and so is SIGINT; SIGHUP becomes SIGTERM. The status is that of the
process which failed first, or 0.

From the environment:
  TRAIN     the command                                  python -m vtscale_jax.train
  DEVICES   virtual CPU devices of each process, in place of GPUs
  PORT      of the coordinator                           a free one
  GRACE     seconds that the other processes have, once one failed, to say what they
            know of it and to end by themselves          150
TEXT
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit
fi
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument is '${1:-}', expected the number of processes" >&2
  usage >&2
  exit 2
fi
count=$1
shift
read -ra train <<<"${TRAIN:-python -m vtscale_jax.train}"
grace=${GRACE:-150}

# Devices: virtual ones of the CPU when asked, else an equal share of the GPUs.
gpus=()
if [[ -n ${DEVICES:-} ]]; then
  export JAX_PLATFORMS=cpu
  flag=--xla_force_host_platform_device_count
  others=$(sed -E "s/$flag=[0-9]+//g" <<<"${XLA_FLAGS:-}")
  export XLA_FLAGS="$others $flag=$DEVICES"
elif [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    # Without a driver it prints an apology, and no line like "GPU 0: …".
    mapfile -t gpus < <(nvidia-smi -L 2>/dev/null | sed -nE 's/^GPU ([0-9]+):.*/\1/p')
  fi
fi
if ((${#gpus[@]} % count)); then
  echo "error: ${#gpus[@]} GPUs (${gpus[*]}) cannot be shared evenly by $count" \
    "processes; start another number of them, name the GPUs in CUDA_VISIBLE_DEVICES," \
    "or set DEVICES to run on the CPU" >&2
  exit 2
fi
share=$((${#gpus[@]} / count))

port=${PORT:-$(python -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])')}
export VTSCALE_COORDINATOR=127.0.0.1:$port VTSCALE_NUM_PROCESSES=$count

number_lines() { # process; outlives a Ctrl-C, so that no last line is lost
  trap '' TERM INT HUP USR1
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

pids=() readers=()
pass_on() { # signal
  for pid in "${pids[@]}"; do
    kill -s "$1" "$pid" 2>/dev/null || true # it may have ended
  done
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1

# Each process is in a group of its own, so that a Ctrl-C comes to it once, from here.
# Without job control, bash would also have it ignore SIGINT.
set -m
for ((id = 0; id < count; id++)); do
  export VTSCALE_PROCESS_ID=$id
  if ((share)); then
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:id * share:share}")
    export CUDA_VISIBLE_DEVICES
  fi
  exec {lines}> >(number_lines "$id")
  readers+=("$!")
  "${train[@]}" "$@" </dev/null >&"$lines" 2>&1 {lines}>&- &
  pids+=("$!")
  exec {lines}>&-
done

running=("${!pids[@]}") status=0 deadline="" harder=(TERM KILL)
while ((${#running[@]})); do
  sleep 0.2 || true # a Ctrl-C ends it
  still=()
  for id in "${running[@]}"; do
    if kill -0 "${pids[id]}" 2>/dev/null; then
      still+=("$id")
      continue
    fi
    ended=0
    wait "${pids[id]}" 2>/dev/null || ended=$? # bash would say "Killed"
    if ((ended && !status)); then
      status=$ended deadline=$((SECONDS + grace))
      echo "local.sh: process $id ended with status $ended; the others have $grace s" \
        "to end by themselves" >&2
    fi
  done
  running=(${still[@]+"${still[@]}"})
  if ((${#running[@]})) && [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    echo "local.sh: SIG${harder[0]} to processes ${running[*]}" >&2
    pass_on "${harder[0]}"
    harder=(KILL) deadline=$((SECONDS + 10))
  fi
done

# What is still being printed. A child that outlives its process may hold a reader open.
for ((tenths = 0; tenths < 20; tenths++)); do
  kill -0 "${readers[@]}" 2>/dev/null || break # none is left
  sleep 0.1 || true
done
exit "$status"
