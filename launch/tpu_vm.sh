#!/usr/bin/env bash
# Trains, or generates, on a Cloud TPU pod: a queued resource of TPU VMs, the same command on every worker.
#
#   launch/tpu_vm.sh create  --name=run1 --zone=us-east5-a --type=v5litepod-64 --spot
#   launch/tpu_vm.sh install --name=run1 --zone=us-east5-a --nfs=10.0.0.2:/share
#   launch/tpu_vm.sh start   --name=run1 --zone=us-east5-a -- --config=configs/synthci_30m.py --workdir=/mnt/synthclip/run1
#   launch/tpu_vm.sh logs|status|stop|delete --name=run1 --zone=us-east5-a
#   launch/tpu_vm.sh keep    ...   create, install, start, and all of it again after every preemption, until it
#                                  is finished; takes the options of all three
#
# --module=gen generates instead, with the engine `flax`: each host by itself, on its own chips, with its part of the
# shards (launch/tpu_host.sh; --chips: of a host). The workdir may be a bucket then: --workdir=gs://BUCKET/run1.
# --dry-run prints the commands instead of running them. All workers need the workdir at the same place: --nfs mounts a
# Filestore share (or any NFS) at /mnt/synthclip, and start makes the workdir there, as a folder of the user's own. The
# code is the commit that is checked out here.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

name="" zone="" type="" project="" nfs="" spot=false wait=60 module=synthclip_jax.train chips=4
parse training "create install start logs status stop delete keep" "name zone type project nfs wait module chips" spot "$@"
[ -n "$action" ] || usage 2
if [ -z "$name" ] || [ -z "$zone" ]; then fail "--name and --zone are needed"; fi
checked --name "$name" "$LABEL" "$LABEL_IS"
checked --zone "$zone" "$LABEL" "a zone such as us-east5-a"
checked --wait "$wait" '[0-9]+([.][0-9]+)?' "seconds"
[ -z "$project" ] || checked --project "$project" "$PROJECT" "$PROJECT_IS"
[ -z "$type" ] || checked --type "$type" 'v(4|5litepod|5p|6e)-[0-9]+' "v4-*, v5litepod-*, v5p-*, v6e-*, such as v5litepod-64"
[ -z "$nfs" ] || checked --nfs "$nfs" '[][A-Za-z0-9.:_-]+:/[A-Za-z0-9._/-]*' "HOST:/SHARE of letters, digits, . _ - /"
checked --module "$module" 'synthclip_jax[.]train|gen' "synthclip_jax.train, gen"
checked --chips "$chips" '[148]' "1, 4, 8"
checked_flags ${flags[@]+"${flags[@]}"}

# What it is called on the workers, what it installs, how it starts and what its log says at its end.
job=train extra=tpu verb=train what=training start=(.venv/bin/python -m synthclip_jax.train)
if [ "$module" = gen ]; then
  job=gen extra=tpu,gen,tfds,gcs verb=generate what=generation
  start=(env PYTHON=.venv/bin/python launch/tpu_host.sh "--chips=$chips" --)
fi
gcloud=(gcloud compute tpus)
place=(--zone="$zone" --quiet)
[ -z "$project" ] || place+=(--project="$project")

on_workers() { # which workers, command
  run "${gcloud[@]}" tpu-vm ssh "$name" --worker="$1" --command="$2" "${place[@]}"
}

runtime() {
  case "$type" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) return 1 ;;
  esac
}

# Where the archive of the code lies until it is copied.
scratch=""
forget_scratch() {
  [ -z "$scratch" ] || $dry || rm -rf "$scratch"
  scratch=""
}
trap forget_scratch EXIT

create() {
  local version options=()
  version=$(runtime) || fail "--type=$type: allowed are v4-*, v5litepod-*, v5p-*, v6e-*, such as v5litepod-64"
  ! $spot || options+=(--spot)
  run "${gcloud[@]}" queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${options[@]+"${options[@]}"} "${place[@]}"
}

# ACTIVE once the VMs are there; WAITING_FOR_RESOURCES, PROVISIONING before; SUSPENDED after a preemption.
state() {
  "${gcloud[@]}" queued-resources describe "$name" --format='value(state.state)' "${place[@]}" 2>/dev/null || echo NONE
}

install() {
  local command
  # The VMs' own Python is too old: uv brings one.
  command='set -e; mkdir -p synthclip_jax; tar -xzf synthclip_jax.tar.gz -C synthclip_jax; cd synthclip_jax'
  command+='; pip install --user --quiet uv; ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv'
  command+='; ~/.local/bin/uv pip install --quiet --python .venv/bin/python --editable ".['"$extra"']"'
  if [ -n "$nfs" ]; then
    command+='; sudo apt-get install -y -qq nfs-common; sudo mkdir -p /mnt/synthclip'
    command+="; mountpoint -q /mnt/synthclip || sudo mount -t nfs $(quoted "$nfs")/mnt/synthclip"
  fi
  if $dry; then scratch=SCRATCH; else scratch=$(mktemp -d); fi
  run git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$scratch/synthclip_jax.tar.gz" HEAD
  run "${gcloud[@]}" tpu-vm scp "$scratch/synthclip_jax.tar.gz" "$name:" --worker=all "${place[@]}"
  on_workers all "$command"
  forget_scratch
}

start() {
  [ ${#flags[@]} -gt 0 ] || fail "start: what to ${verb} is missing: -- --config=... --workdir=..."
  local command folder=""
  command=$(quoted "${start[@]}" "${flags[@]}")
  if [ -n "$(shared_workdir)" ]; then
    folder=$(quoted "$(shared_workdir)")
    # The share's own folder is left to root.
    folder="{ [ -d $folder] || sudo install -d -o \"\$(id -u)\" -g \"\$(id -g)\" $folder; } || exit 1; "
  fi
  # Detached, so that it outlives this connection.
  on_workers all "${folder}cd synthclip_jax && nohup setsid sh -c 'echo \$\$ > $job.pid; exec \"\$@\"' $job $command> $job.log 2>&1 < /dev/null &"
}

# The workdir among the flags, if it is on the share.
shared_workdir() {
  local flag before=""
  for flag in "${flags[@]}"; do
    case "$before$flag" in
      --workdir=/mnt/synthclip/* | --workdir/mnt/synthclip/*) printf '%s' "${flag#--workdir=}" ;;
    esac
    before=""
    [ "$flag" != --workdir ] || before=--workdir
  done
}

finished() {
  "${gcloud[@]}" tpu-vm ssh "$name" --worker=0 --command="grep -q '^${what^} is finished' synthclip_jax/$job.log" \
    "${place[@]}" >/dev/null 2>&1
}

running() {
  "${gcloud[@]}" tpu-vm ssh "$name" --worker=0 --command="kill -0 \$(cat synthclip_jax/$job.pid)" \
    "${place[@]}" >/dev/null 2>&1
}

delete() {
  run "${gcloud[@]}" queued-resources delete "$name" --force "${place[@]}"
}

keep() {
  if $dry; then
    create && install && start && delete
    return
  fi
  local now
  while true; do
    now=$(state)
    echo "$(date '+%F %T') $name is $now"
    case "$now" in
      NONE) create ;;
      SUSPENDED | FAILED) delete ;; # preempted: checkpoints are on the share, the next round starts anew
      ACTIVE)
        if finished; then
          echo "$what is finished; $0 delete gives the TPUs back"
          return
        fi
        if ! running; then
          install
          start
        fi
        ;;
    esac
    sleep "$wait"
  done
}

case "$action" in
  create) create ;;
  install) install ;;
  start) start ;;
  logs) on_workers 0 "tail -n 100 -F synthclip_jax/$job.log" ;;
  status) run "${gcloud[@]}" queued-resources describe "$name" "${place[@]}" ;;
  # SIGTERM: all workers save at the same step and end with status 0.
  stop) on_workers all "kill -TERM \$(cat synthclip_jax/$job.pid)" ;;
  delete) delete ;;
  keep) keep ;;
esac
