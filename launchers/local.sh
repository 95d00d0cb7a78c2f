#!/usr/bin/env bash
# One machine, restarted after a crash: launchers/local.sh [--dry-run] RECIPE [overrides]
#   RANKS     processes (default: one per GPU, else 1)
#   RESTARTS  attempts after the first one; each continues from the latest checkpoint (default: 2)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_arguments "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Without it restarted workers read the addresses of the dead ones, and most restarts hang (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
run_or_print torchrun --standalone --nproc_per_node "${RANKS:-$(count_gpus)}" --max_restarts "${RESTARTS:-2}" --module flava_ds.train "${ARGUMENTS[@]}"
