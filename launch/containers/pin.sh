#!/usr/bin/env bash
# Pins the base image of launch/containers/Dockerfile to what its tag is in the registry now. Needs docker with buildx,
# or skopeo, and a network.
#
#   launch/containers/pin.sh                   the tag in the file, its newest digest
#   launch/containers/pin.sh --tag=python:3.13.1-slim-trixie
#   launch/containers/pin.sh --check           changes nothing; fails if the tag has moved
#
# --dry-run prints the command that asks the registry.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/../words.bash"

tag="" check=false
parse nothing "" tag check "$@"
file="$(dirname "$0")/Dockerfile"
pinned=$(sed -n 's/^ARG BASE=//p' "$file")
: "${tag:=${pinned%@*}}"
checked --tag "$tag" '[a-z0-9-]{1,100}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}' "IMAGE:TAG of an official image"

# The digest of the list of images for all processors.
if ! $dry && ! docker buildx version >/dev/null 2>&1 && command -v skopeo >/dev/null; then
  ask=(skopeo inspect --no-tags --format '{{.Digest}}' "docker://docker.io/library/$tag")
else
  ask=(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$tag")
fi
if $dry; then
  run "${ask[@]}"
  exit 0
fi
digest=$("${ask[@]}") || fail "$tag: the registry does not answer"
[[ "$digest" =~ ^sha256:[0-9a-f]{64}$ ]] || fail "$tag: no digest: $(printf '%q' "$digest")"
echo "pinned: $pinned"
echo "now:    $tag@$digest"
if $check; then
  [ "$pinned" = "$tag@$digest" ] || fail "the tag has moved: run $0"
else
  sed -i "s|^ARG BASE=.*|ARG BASE=$tag@$digest|" "$file"
fi
