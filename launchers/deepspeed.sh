#!/usr/bin/env bash
# Several machines through DeepSpeed's own launcher, over ssh: launchers/deepspeed.sh [--dry-run] RECIPE [overrides]
#   HOSTFILE   lines such as "node1 slots=8" (default: hostfile); same user, code and environment at the same path on all machines
#   INTERFACE  network interface of the rendezvous, e.g. eth0 (default: what the host name resolves to)
# On each machine it needs ssh without a password, and pdsh on the first one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_arguments "$@"
HOSTFILE=${HOSTFILE:-hostfile}
if [ ! -s "$HOSTFILE" ]; then
    echo "error: HOSTFILE '$HOSTFILE' is missing or empty; write one line for each machine, e.g. 'node1 slots=8'" >&2
    exit 2
fi
# pdsh waits for ever on a machine whose network died, unless ssh itself gives up.
export PDSH_SSH_ARGS_APPEND=${PDSH_SSH_ARGS_APPEND:--o ServerAliveInterval=15 -o ServerAliveCountMax=4}
if [ -n "${INTERFACE:-}" ] && [ "$DRY_RUN" = no ]; then
    # DeepSpeed passes only variables listed in .deepspeed_env on to other machines.
    printf 'GLOO_SOCKET_IFNAME=%s\nNCCL_SOCKET_IFNAME=%s\nOMP_NUM_THREADS=%s\n' "$INTERFACE" "$INTERFACE" "${OMP_NUM_THREADS:-1}" >.deepspeed_env
fi
run_or_print deepspeed --hostfile "$HOSTFILE" --launcher pdsh --module flava_ds.train "${ARGUMENTS[@]}"
