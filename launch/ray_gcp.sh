#!/usr/bin/env bash
# Generates on a Ray cluster of GPU machines in Google Cloud, which grows and shrinks with the work.
#
#   launch/ray_gcp.sh up --name=N --project=P --zone=Z --workers=0:16 [--machine=g2-standard-12 --gpu=nvidia-l4] [--spot]
#   launch/ray_gcp.sh run --name=N ... -- --config=configs/synthci_30m.py --workdir=gs://BUCKET/run1 --stages=images
#   launch/ray_gcp.sh logs|status|down --name=N ...
#
# up: the head (no GPU) and as many workers as there is work for, from MIN to MAX. What they install is this folder with
# --extra=gen,tfds,ray-cluster,gcs (captions: vllm,ray-cluster,gcs). run: starts `python -m gen --executor=ray` on the head
# and leaves it running; what is done is in the workdir, so that down, up and run again go on. --gpus=1: per machine.
# The same flags with every action: the cluster file is made from them. It needs Ray here: pip install 'ray[default]'.
# --dry-run prints the cluster file and the command instead of running it.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

name="" project="" zone="" workers="" machine=g2-standard-12 gpu=nvidia-l4 gpus=1 spot=false
extra=gen,tfds,ray-cluster,gcs
image=projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570
parse generation "up run logs status down" "name project zone workers machine gpu gpus extra image" spot "$@"
[ -n "$action" ] || usage 2
needed "" name project zone workers
checked_workers "$workers"
checked --name "$name" "$LABEL" "$LABEL_IS"
checked --project "$project" "$PROJECT" "$PROJECT_IS"
checked --zone "$zone" "$LABEL" "a zone such as us-central1-a"
checked --machine "$machine" "$LABEL" "a machine type such as g2-standard-12"
checked --gpu "$gpu" "$LABEL" "an accelerator type such as nvidia-l4"
checked --gpus "$gpus" "$NUMBER" "$NUMBER_IS"
checked --extra "$extra" '[a-z0-9,_-]+' "extras of this package with commas between them"
checked --image "$image" "$IMAGE" "projects/PROJECT/global/images/..."
checked_flags ${flags[@]+"${flags[@]}"}
[ "$action" != run ] || [ ${#flags[@]} -gt 0 ] || fail "run: what to generate is missing: -- --config=... --workdir=gs://..."
# One machine runs one task at a time for each of its GPUs; the last part of the name is its number of CPUs.
cpus="${machine##*-}"
cpus="${cpus%g}"
[[ "$cpus" =~ ^[0-9]+$ ]] || cpus=12 # a2-highgpu-1g and a3-highgpu-1g: 12 for each GPU, and more

# Machines of these kinds come with their GPUs; others are given some.
accelerators() {
  case "$machine" in
    a2-* | a3-* | a4-* | g2-* | g4-*) ;;
    *)
      cat <<YAML
      guestAccelerators:
        - acceleratorType: projects/$project/zones/$zone/acceleratorTypes/$gpu
          acceleratorCount: $gpus
YAML
      ;;
  esac
}

scheduling() {
  echo "      scheduling:"
  echo "        onHostMaintenance: TERMINATE"
  if $spot; then
    echo "        provisioningModel: SPOT"
    echo "        instanceTerminationAction: DELETE"
  fi
}

# Scopes bound what the machines' account may do, whatever its roles are: buckets, logs, and for the head the machines.
disk() { # scopes beside those
  local scope
  cat <<YAML
      disks:
        - boot: true
          autoDelete: true
          type: PERSISTENT
          initializeParams:
            diskSizeGb: 200
            sourceImage: $(yaml "$image")
      serviceAccounts:
        - email: default
          scopes:
YAML
  for scope in devstorage.read_write logging.write monitoring.write "$@"; do
    echo "            - https://www.googleapis.com/auth/$scope"
  done
}

cluster() {
  local root
  root="$(cd "$(dirname "$0")/.." && pwd)"
  cat <<YAML
cluster_name: $(yaml "$name")
max_workers: ${workers#*:}
upscaling_speed: 1.0
idle_timeout_minutes: 10
provider:
  type: gcp
  region: $(yaml "${zone%-*}")
  availability_zone: $(yaml "$zone")
  project_id: $(yaml "$project")
auth:
  ssh_user: ubuntu
available_node_types:
  head:
    min_workers: 0
    max_workers: 0
    # No shard is made here: what is not asked for cannot be preempted.
    resources: {"CPU": 0}
    node_config:
      machineType: n2-standard-8
$(disk compute)
  gpu:
    min_workers: ${workers%:*}
    max_workers: ${workers#*:}
    resources: {"CPU": $cpus, "GPU": $gpus}
    node_config:
      machineType: $(yaml "$machine")
$(accelerators)
$(scheduling)
$(disk)
head_node_type: head
file_mounts: {"/home/ubuntu/synthclip_jax": $(yaml "$root")}
rsync_exclude: [".git/**", ".venv*/**", "runs/**"]
initialization_commands: []
setup_commands:
  - "dpkg -s python3.11-venv >/dev/null 2>&1 || { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv; }"
  - "python3.11 -m venv ~/venv"
  - "~/venv/bin/python -m pip install --quiet --editable '/home/ubuntu/synthclip_jax[$extra]'"
head_start_ray_commands:
  - "~/venv/bin/ray stop"
  - "RAY_USAGE_STATS_ENABLED=0 ~/venv/bin/ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml"
worker_start_ray_commands:
  - "~/venv/bin/ray stop"
  - "RAY_USAGE_STATS_ENABLED=0 ~/venv/bin/ray start --address=\$RAY_HEAD_IP:6379"
YAML
}

file=""
# `ray` wants the cluster in a file of its own.
with_cluster() {
  if $dry; then
    file=cluster.yaml
    cluster
    echo "..."
  else
    file="$(mktemp --suffix=.yaml)"
    trap 'rm -f "$file"' EXIT
    cluster >"$file"
  fi
}

with_cluster
case "$action" in
  up) run ray up --yes "$file" ;;
  run)
    command="$(quoted env RAY_ADDRESS=auto RAY_USAGE_STATS_ENABLED=0 nohup ../venv/bin/python -m gen --executor=ray "${flags[@]}")"
    run ray exec "$file" "cd synthclip_jax && { $command>>gen.log 2>&1 </dev/null & } && sleep 1"
    ;;
  logs) run ray exec "$file" "tail -n 100 -f synthclip_jax/gen.log" ;;
  status) run ray exec "$file" "venv/bin/ray status" ;;
  down) run ray down --yes "$file" ;;
esac
