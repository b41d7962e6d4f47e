#!/usr/bin/env bash
# Generates on one host of a TPU slice, on its own chips, as one of as many processes as the slice has hosts.
#
#   launch/tpu_host.sh --chips=4 -- --config=configs/synthci_30m.py --workdir=gs://BUCKET/run1 --config.gen.images.engine=flax
#
# `launch/tpu_vm.sh --module=gen` and `launch/gke.sh --module=gen` start it on every host. Each begins with its own part of
# the shards, I of N, and helps with what is left; no host waits for another. Which host it is comes from GKE's variables,
# or from the VM's metadata. --chips: of this host (1, 4 or 8). PYTHON names the interpreter.
# --dry-run prints the command and its variables instead of running it.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

chips=4
parse generation "" "chips" "" "$@"
case "$chips" in
  1) bounds=1,1,1 ;;
  4) bounds=2,2,1 ;;
  8) bounds=2,4,1 ;;
  *) fail "--chips=$(printf '%q' "$chips"): allowed: 1, 4, 8, as hosts of TPUs have them" ;;
esac
[ ${#flags[@]} -gt 0 ] || fail "what to generate is missing: -- --config=... --workdir=..."

about() { # of the VM, from its metadata
  curl --silent --fail --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

host="${TPU_WORKER_ID:-}" hosts="${TPU_WORKER_HOSTNAMES:-}"
if [ -z "$host" ]; then
  host=$(about agent-worker-number) || fail "neither TPU_WORKER_ID nor a TPU VM's metadata says which host this is"
  hosts=$(about worker-network-endpoints) || fail "the TPU VM's metadata does not say which hosts the slice has"
fi
commas="${hosts//[^,]/}"

# To the TPU's library this host is a slice of its own. Otherwise it would wait for all hosts to start.
alone=(
  "TPU_PROCESS_BOUNDS=1,1,1" "TPU_CHIPS_PER_PROCESS_BOUNDS=$bounds"
  TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost CLOUD_TPU_TASK_ID=0
)
command=(env "${alone[@]}" "${PYTHON:-python3}" -m gen "--part=$host/$((${#commas} + 1))" "${flags[@]}")
if $dry; then
  run "${command[@]}"
else
  exec "${command[@]}"
fi
