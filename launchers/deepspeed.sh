#!/usr/bin/env bash
# Several machines through DeepSpeed's own launcher, over ssh:
# launchers/deepspeed.sh [--dry-run] RECIPE [overrides]
#   HOSTFILE   lines such as "node1 slots=8" (default: hostfile); all machines need the same user, code and
#              environment at the same path
#   LAUNCHER   pdsh or openmpi (default: pdsh)
#   INTERFACE  network interface of the machines, e.g. eth0 (default: the one that the host name resolves to;
#              required by openmpi)
#   HEAD       name or address of the first machine as the others see it (default: as in HOSTFILE)
#   PORT       port of the rendezvous on it (default: 29500)
# The machines need ssh without a password; pdsh is needed on the first one, Open MPI on all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Quotes an argument for pdsh's remote shell. DeepSpeed only puts double quotes around one with a space.
quote_for_ssh() {
    if [[ "$1" == *" "* ]]; then
        printf '%s\n' "$1" | sed 's/[\\$`]/\\&/g'
    else
        printf '%q\n' "$1"
    fi
}

# Prints the environment for the other machines; DeepSpeed passes on PYTHON* and what a file lists.
handed_over() {
    local wanted='^(NCCL_|GLOO_|CUDA_|FLAVA_|HF_|TORCH_|OMP_NUM_THREADS$|DS_ACCELERATOR$)'
    compgen -e | grep -E "$wanted" | while read -r name; do
        echo "$name=${!name}"
    done
    if [ "$LAUNCHER" = openmpi ]; then
        printf 'MASTER_ADDR=%s\nMASTER_PORT=%s\n' "$HEAD" "$PORT"
    fi
}

# Reads HOSTFILE as DeepSpeed does: sets FIRST, its first machine, and RANKS, the sum of the slots.
read_hostfile() {
    local line number=0 seen=" "
    RANKS=0 FIRST=
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        if [[ $line =~ ^[[:space:]]*(#|$) ]]; then
            continue
        fi
        if ! [[ $line =~ ^[[:space:]]*([^[:space:]]+)[[:space:]]+slots=([1-9][0-9]{0,5})([[:space:]].*)?$ ]]; then
            refuse "HOSTFILE '$HOSTFILE', line $number: '$line' is no machine; write e.g. 'node1 slots=8'"
        fi
        if [[ $seen == *" ${BASH_REMATCH[1]} "* ]]; then
            refuse "HOSTFILE '$HOSTFILE', line $number: '${BASH_REMATCH[1]}' occurs twice; add up its slots"
        fi
        seen+="${BASH_REMATCH[1]} " FIRST=${FIRST:-${BASH_REMATCH[1]}}
        RANKS=$((RANKS + BASH_REMATCH[2]))
    done <"$HOSTFILE"
}

read_arguments "$@"
HOSTFILE=${HOSTFILE:-hostfile} LAUNCHER=${LAUNCHER:-pdsh}
if [ ! -s "$HOSTFILE" ]; then
    refuse "HOSTFILE '$HOSTFILE' is missing or empty; write one line for each machine, e.g. 'node1 slots=8'"
fi
read_hostfile
if [ "$RANKS" = 0 ]; then
    refuse "HOSTFILE '$HOSTFILE' names no machine; write one line for each, e.g. 'node1 slots=8'"
fi
check_run "$RANKS"
HEAD=${HEAD:-$FIRST}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
fi
case $LAUNCHER in
pdsh)
    # pdsh waits forever for a machine whose network died, unless ssh itself gives up.
    keep_alive="-o ServerAliveInterval=15 -o ServerAliveCountMax=4"
    variables=("PDSH_SSH_ARGS_APPEND=${PDSH_SSH_ARGS_APPEND:-$keep_alive}")
    options=(--force_multi) # over ssh for a single machine too, so that arguments are quoted once
    for number in "${!ARGUMENTS[@]}"; do
        ARGUMENTS[number]=$(quote_for_ssh "${ARGUMENTS[number]}")
    done
    ;;
openmpi)
    if [ -z "${INTERFACE:-}" ]; then
        refuse "LAUNCHER=openmpi needs INTERFACE, e.g. eth0: DeepSpeed has to name one to Open MPI"
    fi
    variables=()
    # Open MPI binds a rank to one core by default, which its loader and threads would share.
    options=("--launcher_args=--bind-to none --mca btl_tcp_if_include $INTERFACE")
    ;;
*) refuse "LAUNCHER '$LAUNCHER' is neither pdsh nor openmpi" ;;
esac
if [ "$DRY_RUN" = no ]; then
    for program in ssh "${LAUNCHER/openmpi/mpirun}"; do
        command -v "$program" >/dev/null || refuse "LAUNCHER=$LAUNCHER needs $program, which is not installed"
    done
fi
environment=$(cd "$(dirname "$HOSTFILE")" && pwd)/$(basename "$HOSTFILE").env
if [ "$DRY_RUN" = no ]; then
    handed_over >"$environment"
fi
run_or_print env "$SAFE_PATH" "${variables[@]}" "DS_ENV_FILE=$environment" \
    deepspeed --hostfile "$HOSTFILE" --launcher "$LAUNCHER" "${options[@]}" \
    --master_addr "$HEAD" --master_port "$PORT" --module "$MODULE" "${ARGUMENTS[@]}"
