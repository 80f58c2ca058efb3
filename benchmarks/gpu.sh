#!/usr/bin/env bash
# All that needs a GPU, on one machine with one, in under ten minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh [--dry_run] [--out FILE] [more of `python -m benchmarks all`]

  pip install -e '.[gpu]'
  benchmarks/gpu.sh                        # into benchmarks/results/<device>.json
  benchmarks/gpu.sh --only paper_latency   # one of them
  benchmarks/gpu.sh --dry_run              # the commands, each with its limit

Checks the environment, then runs: the train step at the paper's shapes (align and
finetune, M = 1, 256 and 768; random weights), the time to the first token at every M,
a short training of SmolLM2, the divergence kernels, and decoding. Each has a limit of
its own, and all together have one; a job that fails is named at the end with its log,
and the others go on. The same command goes on with what is missing. The paper's shapes
need 80 GB of GPU memory.

From the environment:
  PYTHON   the interpreter                                 python
  LOGS     output of the jobs, in a folder of the device   runs/benchmarks
  WITHIN   seconds for all jobs together                   560
The status is 0 when every job was measured, 1 when one failed, 2 when the environment
does not do.
TEXT
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit
fi
dry="" options=()
for word in "$@"; do
  if [[ $word == --dry_run ]]; then dry=yes; else options+=("$word"); fi
done
python=${PYTHON:-python}
logs=${LOGS:-runs/benchmarks}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
all=("$python" -m benchmarks all --logs "$logs" ${options[@]+"${options[@]}"})

if [[ -n $dry ]]; then
  exec "${all[@]}" --dry_run --platform gpu
fi

begun=$SECONDS
fail() {
  echo "error: $1" >&2
  exit 2
}

# What every job needs, asked once: a driver, a JAX that sees it, our packages.
echo "environment" >&2
command -v nvidia-smi >/dev/null || fail "no nvidia-smi: there is no NVIDIA driver here"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >&2 ||
  fail "nvidia-smi finds no GPU"
# The process takes no memory for itself, since jobs follow.
check='
import sys
import jax
from vtscale_jax.run_folder import code_version, versions
if jax.default_backend() != "gpu":
    sys.exit(f"JAX computes on the {jax.default_backend()}: the GPU build is missing")
print(jax.devices(), versions() | code_version(), file=sys.stderr)
'
XLA_PYTHON_CLIENT_PREALLOCATE=false timeout 60 "$python" -c "$check" ||
  fail "JAX does not see the GPU, or a package is missing: pip install -e '.[gpu]'"

# Real weights for the short training, where there is a network; without, its row says
# what is missing.
timeout 20 "$python" -m vtscale_jax.weights fetch smollm2-135m >&2 || true

# What the checks took is gone; the rest is for ending the last job and for the table.
within=${WITHIN:-560}
left=$((within - (SECONDS - begun)))
status=0
timeout --kill-after 10 "$((left + 20))" "${all[@]}" --within "$left" || status=$?
exit "$status"
