#!/usr/bin/env bash
# Tries what an image of launch/containers/Dockerfile is for, in small: the commands' help, and a run of a minute.
#
#   docker run --rm --entrypoint launch/containers/smoke.sh IMAGE --target=train-cpu
#   launch/containers/smoke.sh --target=generate-diffusers --python=.venv/bin/python
#
# It uses the accelerator that it finds, or says that it finds none. Without a GPU vLLM is only imported. --dry-run prints
# the commands instead of running them.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/../words.bash"

target="" python=python3
parse nothing "" "target python" "" "$@"
needed "" target
checked --target "$target" 'train-(cpu|cuda|tpu)|generate-(diffusers|vllm|tpu)' \
  "train-{cpu,cuda,tpu}, generate-{diffusers,vllm,tpu}"
[[ "$python" != */* ]] || python="$(realpath --no-symlinks "$python")"
cd "$(dirname "$0")/../.."

there() { # whether one of the files is
  local file
  for file in "$@"; do
    [ ! -e "$file" ] || return 0
  done
  return 1
}

accelerator=none
! there /dev/nvidia[0-9]* || accelerator=gpu
! there /dev/accel[0-9]* /dev/vfio/[0-9]* || accelerator=tpu
# Otherwise libtpu would ask a cloud for a TPU, for minutes.
[ "$accelerator" != none ] || export JAX_PLATFORMS=cpu
$dry || echo "$target as $(id -un 2>/dev/null || id -u), accelerator: $accelerator"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

explained() { # by each command itself
  local module
  for module in "$@"; do
    if $dry; then
      run "$python" -m "$module" --help
    else
      "$python" -m "$module" --help >/dev/null
    fi
  done
}

# 64 flat images with captions, in a tar.
pairs() {
  cat <<'PYTHON'
import io, sys, tarfile
from PIL import Image
COLORS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
with tarfile.open(sys.argv[1], "w") as tar:
    for number in range(64):
        name, color = list(COLORS.items())[number % 4]
        image = io.BytesIO()
        Image.new("RGB", (32, 32), color).save(image, "JPEG")
        for ending, data in (("jpg", image.getvalue()), ("txt", f"a {name} square, number {number}".encode())):
            member = tarfile.TarInfo(f"{number:04d}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
PYTHON
}

# A model of the smallest.
tiny=(--config.data.image_size=32 --config.train.batch_size=16 --config.train.epochs=1 --config.train.warmup_epochs=0.5
  --config.model.embed_dim=16 --config.model.vision.width=16 --config.model.vision.layers=1
  --config.model.vision.heads=2 --config.model.text.width=16 --config.model.text.heads=2)
# The model that ships with the package draws; captions by templates, or by the language model of a package.
small=(--config.gen.concepts.limit=4 --config.gen.captions.per_concept=2 --config.gen.captions.engine=templates
  --config.gen.captions.examples='()' --config.gen.images.model=miniature --config.gen.images.generate_size=32
  --config.gen.images.size=32 --config.gen.images.steps=2 --config.gen.images.per_caption=1
  --config.gen.images.batch_size=8 --config.gen.images.min_std=0 --config.gen.images.max_saturated=1)
quickstart=(--config=configs/quickstart.py --workdir="$work/run")

train() {
  explained synthclip_jax.train synthclip_jax.evaluate synthclip_jax.export
  run "$python" -c "$(pairs)" "$work/pairs.tar"
  run "$python" -m synthclip_jax.train "${quickstart[@]}" --config.data.sources="wds:$work/pairs.tar" "${tiny[@]}"
  run "$python" -m synthclip_jax.export --workdir="$work/run" --format=open_clip --out="$work/export"
}

generate() { # its images by an engine
  explained gen gen.verify
  run "$python" -m gen "${quickstart[@]}" "${small[@]}" --config.gen.images.engine="$1"
  run "$python" -m gen.verify --workdir="$work/run"
}

captions() {
  explained gen
  run "$python" -c "import vllm; print('vllm', vllm.__version__)"
  if [ "$accelerator" = gpu ]; then
    run "$python" -m gen "${quickstart[@]}" --stages=concepts,captions,balance --config.gen.concepts.limit=4 \
      --config.gen.captions.engine=vllm
  else
    echo "no GPU: vLLM writes nothing"
  fi
}

case "$target" in
  train-*) train ;;
  generate-diffusers) generate diffusers ;;
  generate-tpu)
    generate flax
    train
    ;;
  generate-vllm) captions ;;
esac
$dry || echo "$target: fine"
