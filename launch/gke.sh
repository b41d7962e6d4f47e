#!/usr/bin/env bash
# Trains, or generates, on a TPU slice of a GKE cluster: one JobSet, one pod per TPU host, restarted after preemptions.
#
#   launch/gke.sh apply --name=run1 --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=8x8 --hosts=16 \
#       --claim=CLAIM -- --config=configs/synthci_30m.py --workdir=/workdir/run1
#   launch/gke.sh logs|status|delete --name=run1
#
# --image: launch/containers/Dockerfile, --target=train-tpu. --claim: a ReadWriteMany volume claim, mounted at /workdir.
# --chips=4: chips per host (v5e and v6e hosts have 1, 4 or 8). The cluster needs the JobSet controller.
# --module=gen generates instead, with the engine `flax`: each host by itself, on its own chips, with its part of the
# shards; the image is then --target=generate-tpu, and the workdir may be a bucket.
# --dry-run prints the manifest and the command instead of running it.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

name="" image="" accelerator="" topology="" hosts="" claim="" chips=4 restarts=100 module=synthclip_jax.train
parse training "apply logs status delete" "name image accelerator topology hosts claim chips restarts module" "" "$@"
[ -n "$action" ] || usage 2
needed "" name
checked --name "$name" "$LABEL" "$LABEL_IS"
checked --chips "$chips" "$NUMBER" "$NUMBER_IS"
checked --restarts "$restarts" "$NUMBER" "$NUMBER_IS"
checked --module "$module" 'synthclip_jax[.]train|gen' "synthclip_jax.train, gen"
[ -z "$image" ] || checked --image "$image" "$IMAGE" "$IMAGE_IS"
[ -z "$accelerator" ] || checked --accelerator "$accelerator" "$WORD" "$WORD_IS"
[ -z "$topology" ] || checked --topology "$topology" '[0-9]+(x[0-9]+){1,2}' "numbers with x between them, such as 8x8 or 4x4x4"
[ -z "$hosts" ] || checked --hosts "$hosts" "$NUMBER" "$NUMBER_IS"
[ -z "$claim" ] || checked --claim "$claim" "$CLAIM" "$CLAIM_IS"
checked_flags ${flags[@]+"${flags[@]}"}

# A YAML list of strings. Kubernetes takes $(NAME) in them for a variable, and $$ for a dollar sign.
arguments() {
  local flag
  for flag in "${flags[@]}"; do
    printf '                    - %s\n' "$(yaml "${flag//\$/\$\$}")"
  done
}

# What takes the place of the image's own command.
entry() {
  if [ "$module" = gen ]; then
    printf '                  command: ["launch/tpu_host.sh", "--chips=%s", "--"]' "$chips"
  else
    printf '                  # The image trains.'
  fi
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$name")
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: train
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              # Time to save after SIGTERM, which all hosts do at the same step.
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(yaml "$accelerator")
                cloud.google.com/gke-tpu-topology: $(yaml "$topology")
              tolerations:
                - key: google.com/tpu
                  operator: Exists
              containers:
                - name: train
                  image: $(yaml "$image")
$(entry)
                  args:
$(arguments)
                  resources:
                    requests:
                      google.com/tpu: $chips
                    limits:
                      google.com/tpu: $chips
                  volumeMounts:
                    - name: workdir
                      mountPath: /workdir
              volumes:
                - name: workdir
                  persistentVolumeClaim:
                    claimName: $(yaml "$claim")
YAML
}

apply() {
  needed "apply: " image accelerator topology hosts claim
  [ ${#flags[@]} -gt 0 ] || fail "apply: what to train is missing: -- --config=... --workdir=/workdir/..."
  if $dry; then
    manifest
    echo "..."
    run kubectl apply --filename=-
  else
    manifest | kubectl apply --filename=-
  fi
}

case "$action" in
  apply) apply ;;
  logs) run kubectl logs --follow --tail=100 "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  status) run kubectl get jobset,jobs,pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide ;;
  delete) run kubectl delete jobset "$name" --wait ;;
esac
