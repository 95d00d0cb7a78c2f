#!/usr/bin/env bash
# Kubernetes: launchers/kubernetes.sh [--dry-run] RECIPE [overrides] writes a manifest and applies it.
#   KIND   Job, without an operator, or PyTorchJob of the Kubeflow training operator (default: Job)
#   IMAGE  with this package installed (default: flava-ds:latest)
#   CLAIM  volume claim mounted at /data, for shards and runs (default: flava-ds)
#   NAME   of the job (default: flava-ds)
#   NODES  pods (default: 2)          GPUS  of each pod (default: 8)
#   PORT   of the rendezvous (default: 29500)
#   RESTARTS  attempts of the ranks after the first one (default: 2)
#   GRACE     seconds that they have for a last checkpoint when a pod is stopped (default: 280)
# Paths in the overrides are those inside the pods:
# --data.sources.pmd.shards /data/pmd --logging.run-directory /data/runs ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Prints a YAML string; $$ keeps Kubernetes from expanding $(VARIABLE).
yaml_string() {
    local text=${1//'$('/'$$('}
    echo "'${text//\'/\'\'}'"
}

# Prints the pod spec of both kinds: pod CONTAINER_NAME RENDEZVOUS INDENTATION.
pod() {
    local margin
    margin=$(printf '%*s' "$3" '')
    {
        cat <<POD
terminationGracePeriodSeconds: $((GRACE + 20)) # SIGTERM, a checkpoint, and only then SIGKILL
containers:
  - name: $1
    image: $IMAGE
    command: [python3, -m, $SUPERVISOR]
    args:
POD
        local word
        for word in "--nnodes=$NODES" "--nproc_per_node=$GPUS" "--max_restarts=$RESTARTS" \
            --rdzv_backend=c10d "--rdzv_endpoint=$2" "--rdzv_id=$NAME" --module "$MODULE"; do
            echo "      - $word"
        done
        for word in "${ARGUMENTS[@]}"; do
            echo "      - $(yaml_string "$word")"
        done
        cat <<POD
    env:
      - {name: ${SAFE_PATH%=*}, value: "${SAFE_PATH#*=}"}
      - {name: OMP_NUM_THREADS, value: "${OMP_NUM_THREADS:-8}"}
      - {name: TORCH_ELASTIC_SHUTDOWN_TIMEOUT, value: "$GRACE"}
    resources:
      limits: {nvidia.com/gpu: $GPUS}
    volumeMounts:
      - {name: data, mountPath: /data}
      - {name: shared-memory, mountPath: /dev/shm}
volumes:
  - name: data
    persistentVolumeClaim: {claimName: $CLAIM}
  - name: shared-memory # loader processes hand batches over through it
    emptyDir: {medium: Memory, sizeLimit: 64Gi}
POD
    } | sed "s/^/$margin/"
}

# An indexed Job; a headless Service makes pod 0 addressable.
job() {
    cat <<MANIFEST
apiVersion: v1
kind: Service
metadata: {name: $NAME}
spec:
  clusterIP: None
  publishNotReadyAddresses: true # pods look each other up before they are ready
  selector: {job-name: $NAME}
  ports:
    - {name: rendezvous, port: $PORT}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $NAME}
spec:
  completionMode: Indexed
  parallelism: $NODES
  completions: $NODES
  backoffLimit: 20 # a lost pod is started again and the run continues from its latest checkpoint
  template:
    spec:
      subdomain: $NAME
      restartPolicy: OnFailure
MANIFEST
    pod train "$NAME-0.$NAME:$PORT" 6
}

# The operator sets MASTER_ADDR to the first pod in all pods and gives it a Service.
pytorchjob() {
    cat <<MANIFEST
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: $NAME}
spec:
  runPolicy: {backoffLimit: 20, cleanPodPolicy: None}
  pytorchReplicaSpecs:
MANIFEST
    local role
    for role in Master Worker; do
        cat <<MANIFEST
    $role:
      replicas: $([ "$role" = Master ] && echo 1 || echo $((NODES - 1)))
      restartPolicy: OnFailure
      template:
        spec:
MANIFEST
        # The operator looks for a container of this name, and opens port 23456 for it.
        pod pytorch "\$(MASTER_ADDR):\$(MASTER_PORT)" 10
    done
}

ELSEWHERE=yes # the volume with the shards is not mounted here
read_arguments "$@"
KIND=${KIND:-Job} IMAGE=${IMAGE:-flava-ds:latest} CLAIM=${CLAIM:-flava-ds} NAME=${NAME:-flava-ds}
NODES=${NODES:-2} GPUS=${GPUS:-8}
require_number NODES 1
require_number GPUS 1
check_run $((NODES * GPUS))
case $KIND in
Job) manifest=$(job) ;;
PyTorchJob)
    if [ "$NODES" -lt 2 ]; then
        refuse "KIND=PyTorchJob needs NODES of 2 or more, a master and its workers; one machine is KIND=Job"
    fi
    manifest=$(pytorchjob)
    ;;
*) refuse "KIND '$KIND' is neither Job nor PyTorchJob" ;;
esac
if [ "$DRY_RUN" = yes ]; then
    printf "kubectl apply --filename=- <<'MANIFEST'\n%s\nMANIFEST\n" "$manifest"
else
    kubectl apply --filename=- <<<"$manifest"
fi
