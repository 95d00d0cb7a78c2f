#!/usr/bin/env bash
# One machine, or the same command on each of several, with restarts after a crash:
# launchers/torchrun.sh [--dry-run] RECIPE [overrides]
#   RANKS     processes of this machine (default: one per GPU, else 1)
#   RESTARTS  attempts after the first one; each continues from the latest checkpoint (default: 2)
#   NODES     machines, e.g. 4, or 2:4 to continue with at least two if others are lost (default: 1)
#   HEAD      name or address of one of them, the same on all; required if NODES is more than 1
#   PORT      port of the rendezvous on HEAD (default: 29500)
#   GRACE     seconds that ranks have for a last checkpoint when they are stopped (default: 280)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_arguments "$@"
NODES=${NODES:-1} RANKS=${RANKS:-$(count_gpus)}
require_number RANKS 1
FEWEST=${NODES%%:*} MOST=${NODES#*:}
if ! [[ $NODES =~ ^[1-9][0-9]{0,5}(:[1-9][0-9]{0,5})?$ ]] || ((FEWEST > MOST)); then
    refuse "NODES='$NODES': use a number of machines, e.g. 4, or the fewest and the most, e.g. 2:4"
fi
rendezvous=(--standalone)
if [ "$NODES" != 1 ]; then
    if [ -z "${HEAD:-}" ]; then
        refuse "NODES=$NODES needs HEAD, the name or address of one of the machines"
    fi
    rendezvous=(--nnodes "$NODES" --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id flava_ds)
fi
check_run $((FEWEST * RANKS)) $((MOST * RANKS))
compose_torchrun "${rendezvous[@]}" --nproc_per_node "$RANKS" --
run_or_print "${COMMAND[@]}"
