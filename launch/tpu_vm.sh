#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs, runs the command on all its workers.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh NAME train [train arguments]
       launch/tpu_vm.sh NAME log | stop | fetch [FOLDER] | delete

  train    creates the slice NAME if there is none, copies this checkout to all its
           workers, trains on them and shows the log of worker 0 until the end. Training
           does not need this terminal: Ctrl-C ends the log only.
  log      shows the log again, until the end
  stop     training saves and ends; the same train command goes on
  fetch    copies the run folder here (default: into runs/)
  delete   deletes the slice and its disks

  ZONE=us-east5-b SPOT=1 launch/tpu_vm.sh my-tpu train --config configs/m256.py
  ZONE=us-east5-b TYPE=v6e-16 NFS=10.0.0.2:/runs SPOT=1 RESTARTS=20 \
      launch/tpu_vm.sh my-tpu train --config configs/m256.py:paper

From the environment:
  ZONE       gcloud's compute/zone
  TYPE       v6e-8; v5litepod-16, v5p-16, v4-16, …
  VERSION    software of the slice       by TYPE
  SPOT=1     a slice that may be taken away at any time
  RESTARTS   how often a slice that was taken away is created anew    0
  NFS        HOST:/PATH, as of a Filestore, mounted as ~/runs of all workers. Slices of
             several workers need it, and RESTARTS: the workers' disks go with the slice.
  WAIT       seconds before trying anything again            60
  RUN        name of the run folder in ~/runs                  NAME
  SOURCE     a git URL to install from, in place of this checkout
TEXT
}

case ${1:-} in
  -h | --help) usage && exit ;;
esac
case ${2:-} in
  train | log | stop | fetch | delete) ;;
  *)
    echo "error: expected NAME and train, log, stop, fetch or delete; got '$*'" >&2
    usage >&2
    exit 2
    ;;
esac
name=$1 action=$2
shift 2
type=${TYPE:-v6e-8} run=${RUN:-$name} restarts=${RESTARTS:-0}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $type in
  v6e-*) version=v2-alpha-tpuv6e ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  *) version=tpu-ubuntu2204-base ;;
esac
zone=(${ZONE:+--zone="$ZONE"})
if ((restarts)) && [[ -z ${NFS:-} ]]; then
  echo "error: RESTARTS without NFS: the run folder would go with the slice" >&2
  exit 2
fi

tpu() { gcloud compute tpus tpu-vm "$@" ${zone[@]+"${zone[@]}"}; }
on() { tpu ssh "$name" --worker="$1" --command="$2"; } # 0 or all, shell commands
state() { tpu list --filter="name~/$name\$" --format="value(state)"; } # empty: none

create() {
  tpu create "$name" --accelerator-type="$type" --version="${VERSION:-$version}" \
    ${SPOT:+--spot}
}

install() {
  local hosts source mount=""
  hosts=$(tpu describe "$name" --format="value(networkEndpoints[].ipAddress)") || return
  if [[ $hosts == *[\;,]* && -z ${NFS:-} ]]; then
    echo "error: $name has several workers ($hosts), which write one run folder:" \
      "set NFS to a file system that all of them see" >&2
    exit 2
  fi
  if [[ -n ${SOURCE:-} ]]; then
    source="git clone -q --depth 1 $(printf %q "$SOURCE") vtscale_jax"
  else
    # What git keeps or would keep, but no virtual environment of whatever name; a file
    # deleted since is no error.
    local without=(--exclude-standard) environment
    for environment in "$root"/*/pyvenv.cfg; do
      [[ -e $environment ]] || continue # the pattern itself, where there is none
      environment=${environment%/pyvenv.cfg}
      without+=(--exclude "/${environment##*/}/")
    done
    git -C "$root" ls-files -z --cached --others "${without[@]}" |
      tar -C "$root" --null --ignore-failed-read -T - -czf "$archive"
    tpu scp "$archive" "$name:vtscale_jax.tar.gz" --worker=all || return
    source="mkdir vtscale_jax && tar -C vtscale_jax -xzf vtscale_jax.tar.gz"
  fi
  if [[ -n ${NFS:-} ]]; then
    mount="mountpoint -q runs || {
  sudo apt-get install -qq -y nfs-common >/dev/null
  sudo mount -t nfs $(printf %q "$NFS") runs && sudo chmod a+rwx runs
}"
  fi
  # The system's Python is older than 3.11.
  on all "set -e
rm -rf vtscale_jax
$source
python3 -m pip install -q --user uv
.local/bin/uv venv -q --allow-existing --python 3.12 venv
.local/bin/uv pip install -q --python venv -e 'vtscale_jax[tpu]'
mkdir -p runs
$mount"
}

start() { # train arguments
  # Away from this connection. The small files are for log, stop and the end.
  on all "set -e
cd vtscale_jax
rm -f ../train.status ../train.stopped
nohup bash -c '
  ../venv/bin/python -m vtscale_jax.train \"\$@\" &
  echo \$! >../train.pid
  wait \$!
  echo \$? >../train.status
' train $(printf '%q ' "$@") --workdir ../runs/$(printf %q "$run") \
  </dev/null >../train.log 2>&1 &
sleep 1"
}

follow() { # first line to show; fails when the connection breaks
  on 0 "tail -n $1 -f --pid=\$(cat train.pid) train.log
for second in 1 2 3 4 5; do [ -e train.status ] || sleep 1; done
[ -e train.status ]"
}

case $action in
  log) follow +1 && exit ;;
  stop) on all "touch train.stopped; kill -TERM \$(cat train.pid)" && exit ;;
  delete) tpu delete "$name" --quiet && exit ;;
  fetch)
    mkdir -p "${1:-runs}"
    tpu scp --recurse "$name:runs/$run" "${1:-runs}" --worker=0
    exit
    ;;
esac

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
if [[ $(state) == READY ]] && on 0 "kill -0 \$(cat train.pid)" 2>/dev/null; then
  echo "error: $name is training already; see log, or stop it first" >&2
  exit 2
fi
for ((turn = 0; turn <= restarts; turn++)); do
  now=$(state)
  if ((turn)); then
    echo "tpu_vm.sh: the slice is ${now:-gone}; restart $turn of $restarts"
    sleep "${WAIT:-60}"
  fi
  if [[ -n $now && $now != READY ]]; then
    tpu delete "$name" --quiet
    now=""
  fi
  # Whatever fails while a slice is being taken away is tried on the next one.
  if [[ -z $now ]] && ! create; then continue; fi
  if ! install || ! start "$@"; then continue; fi
  lines=+1
  until follow "$lines"; do
    if [[ $(state) != READY ]]; then continue 2; fi
    echo "tpu_vm.sh: the connection broke; making it again" >&2
    sleep "${WAIT:-60}"
    lines=5
  done
  status=$(on 0 "cat train.status") || continue
  if ((status == 75)); then continue; fi # another worker was lost
  if ((status)); then
    echo "tpu_vm.sh: training failed with status $status" >&2
    exit "$status"
  fi
  if on 0 "grep -Eqs '^  \"finished\": true,?\$' runs/$(printf %q "$run")/manifest.json"; then
    echo "finished; next: launch/tpu_vm.sh $name fetch, then delete"
    exit
  fi
  if on 0 "[ -e train.stopped ]"; then
    echo "saved and stopped; the same train command goes on"
    exit
  fi
done
echo "tpu_vm.sh: not finished, and RESTARTS=$restarts is used up; the same train command" \
  "goes on" >&2
exit 75
