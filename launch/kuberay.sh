#!/usr/bin/env bash
# Generates on GPUs of a Kubernetes cluster: one RayJob, whose workers come and go with the work.
#
#   launch/kuberay.sh apply --name=run1 --image=IMAGE --workers=0:16 [--gpus=1 --accelerator=nvidia-l4 --spot] \
#       [--claim=CLAIM] -- --config=configs/synthci_30m.py --workdir=gs://BUCKET/run1 --stages=images
#   launch/kuberay.sh logs|status|delete --name=run1
#
# --image: launch/containers/Dockerfile, --target=generate-diffusers; for captions generate-vllm. --workers=MIN:MAX pods,
# each with --gpus=1, --cpus=8 and --memory=32Gi. --accelerator, --spot: node labels of GKE. --claim: a ReadWriteMany
# volume claim, mounted at /workdir, for workdirs that are no URL. The cluster needs the KubeRay operator.
# A job that ends is started again up to --restarts=10 times and goes on where it was.
# --dry-run prints the manifest and the command instead of running it.
set -euo pipefail

# shellcheck source=launch/words.bash
. "$(dirname "$0")/words.bash"

name="" image="" workers="" gpus=1 cpus=8 memory=32Gi accelerator="" spot=false claim="" restarts=10
parse generation "apply logs status delete" "name image workers gpus cpus memory accelerator claim restarts" spot "$@"
[ -n "$action" ] || usage 2
needed "" name
checked --name "$name" "$LABEL" "$LABEL_IS"
for key in gpus cpus restarts; do
  checked "--$key" "${!key}" "$NUMBER" "$NUMBER_IS"
done
checked --memory "$memory" '[0-9]{1,9}(Ki|Mi|Gi|Ti)?' "bytes, such as 32Gi"
[ -z "$image" ] || checked --image "$image" "$IMAGE" "$IMAGE_IS"
[ -z "$accelerator" ] || checked --accelerator "$accelerator" "$WORD" "$WORD_IS"
[ -z "$claim" ] || checked --claim "$claim" "$CLAIM" "$CLAIM_IS"
checked_flags ${flags[@]+"${flags[@]}"}

entrypoint() {
  yaml "$(quoted python -m gen --executor=ray "${flags[@]}")"
}

environment() {
  cat <<YAML
                env:
                  - name: RAY_USAGE_STATS_ENABLED
                    value: "0"
YAML
}

mounts() {
  [ -z "$claim" ] || cat <<YAML
                volumeMounts:
                  - name: workdir
                    mountPath: /workdir
YAML
}

volumes() {
  [ -z "$claim" ] || cat <<YAML
            volumes:
              - name: workdir
                persistentVolumeClaim:
                  claimName: $(yaml "$claim")
YAML
}

nodes() {
  [ -n "$accelerator" ] || $spot || return 0
  echo "            nodeSelector:"
  [ -z "$accelerator" ] || echo "              cloud.google.com/gke-accelerator: $(yaml "$accelerator")"
  ! $spot || echo '              cloud.google.com/gke-spot: "true"'
}

manifest() {
  cat <<YAML
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: $(yaml "$name")
spec:
  entrypoint: $(entrypoint)
  backoffLimit: $restarts
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600
  rayClusterSpec:
    enableInTreeAutoscaling: true
    autoscalerOptions:
      idleTimeoutSeconds: 300
    headGroupSpec:
      rayStartParams:
        # No shard is made here: the head must not go away.
        num-cpus: "0"
      template:
          metadata:
            labels:
              synthclip-job: $(yaml "$name")
          spec:
            containers:
              - name: head
                image: $(yaml "$image")
                ports:
                  - name: gcs
                    containerPort: 6379
                  - name: dashboard
                    containerPort: 8265
                  - name: client
                    containerPort: 10001
$(environment)
                resources:
                  requests:
                    cpu: 4
                    memory: 16Gi
                  limits:
                    cpu: 4
                    memory: 16Gi
$(mounts)
$(volumes)
    workerGroupSpecs:
      - groupName: gpu
        replicas: ${workers%:*}
        minReplicas: ${workers%:*}
        maxReplicas: ${workers#*:}
        rayStartParams: {}
        template:
          metadata:
            labels:
              synthclip-job: $(yaml "$name")
          spec:
            # Pods on GPU nodes are let in.
            tolerations:
              - key: nvidia.com/gpu
                operator: Exists
$(nodes)
            containers:
              - name: worker
                image: $(yaml "$image")
$(environment)
                resources:
                  requests:
                    cpu: $cpus
                    memory: $memory
                    nvidia.com/gpu: $gpus
                  limits:
                    cpu: $cpus
                    memory: $memory
                    nvidia.com/gpu: $gpus
$(mounts)
$(volumes)
---
# Anyone who reaches Ray's ports may run anything on its machines. Allowed are the pods of this job, the pod that submits
# it, and the operator, which asks for its status.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: $(yaml "$name")
spec:
  podSelector:
    matchLabels:
      synthclip-job: $(yaml "$name")
  policyTypes: ["Ingress"]
  ingress:
    - from:
        - podSelector:
            matchLabels:
              synthclip-job: $(yaml "$name")
        - podSelector:
            matchLabels:
              job-name: $(yaml "$name")
        - namespaceSelector: {}
          podSelector:
            matchLabels:
              app.kubernetes.io/name: kuberay-operator
YAML
}

apply() {
  needed "apply: " image workers
  checked_workers "$workers"
  [ ${#flags[@]} -gt 0 ] || fail "apply: what to generate is missing: -- --config=... --workdir=gs://..."
  if $dry; then
    manifest | grep -v '^$'
    echo "..."
    run kubectl apply --filename=-
  else
    manifest | kubectl apply --filename=-
  fi
}

case "$action" in
  apply) apply ;;
  logs) run kubectl logs --follow --tail=100 "--selector=job-name=$name" ;;
  status) run kubectl get rayjobs,rayclusters,pods --output=wide ;;
  delete) run kubectl delete "rayjob/$name" "networkpolicy/$name" --wait ;;
esac
