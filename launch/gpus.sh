#!/usr/bin/env bash
# Trains on the GPUs of one machine.
#
#   launch/gpus.sh [--processes=N] [--dry-run] -- --config=configs/synthci_30m.py --workdir=W
#
# One process uses all GPUs, which is all that most machines need. --processes=N starts one process per GPU instead,
# each with a loader of its own, for when a single Python process cannot feed that many. SIGTERM and SIGINT reach all
# of them: they save at the same step and end with status 0. Exit status: the first one that is not 0.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

processes=1
parse training "" processes "" "$@"

checked --processes "$processes" '[1-9][0-9]{0,3}' "a whole number of at least 1"
command=("${PYTHON:-python3}" -m synthclip_jax.train ${flags[@]+"${flags[@]}"})
# JAX takes three quarters of a GPU's memory otherwise.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

if [ "$processes" = 1 ]; then
  if $dry; then
    printf '%q ' "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "${command[@]}"
    echo
    exit 0
  fi
  exec "${command[@]}"
fi

address="localhost:${PORT:-9876}"
children=()
stopped=false failed=false
trap 'stopped=true; [ ${#children[@]} = 0 ] || kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < processes; index++)); do
  settings=(JAX_COORDINATOR_ADDRESS="$address" JAX_NUM_PROCESSES="$processes" JAX_PROCESS_ID="$index"
    CUDA_VISIBLE_DEVICES="$index")
  if $dry; then
    printf '%q ' "${settings[@]}" "${command[@]}"
    echo
  else
    env "${settings[@]}" "${command[@]}" &
    children+=($!)
  fi
done

# A signal that came while the processes were being started has not reached all of them, and one that is sent to a
# process in its first moment can be lost. They have nothing to save yet, so it is sent until they are gone.
early=$stopped

status=0
while [ ${#children[@]} != 0 ]; do
  # A short time only: `wait` does not see a signal that comes just before it.
  sleep 0.5 &
  wait $! || true
  left=()
  for child in "${children[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      left+=("$child")
      continue
    fi
    code=0
    wait "$child" || code=$?
    if [ "$code" != 0 ] && [ "$status" = 0 ]; then
      status=$code
      failed=true # the others would wait for it for a long time
    fi
  done
  children=(${left[@]+"${left[@]}"})
  if { $early || $failed; } && [ ${#children[@]} != 0 ]; then kill -TERM "${children[@]}" 2>/dev/null || true; fi
  failed=false
done
exit "$status"
