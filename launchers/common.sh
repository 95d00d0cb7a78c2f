# Shared by the launchers: sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -d "$here/.venv/bin" ]; then
    PATH="$here/.venv/bin:$PATH"
fi
MODULE=flava_ds.train
# Keeps Python from importing what lies in the working directory, which may be a folder of downloaded data.
SAFE_PATH=PYTHONSAFEPATH=1
export "${SAFE_PATH?}"
# Seconds that torchrun leaves its ranks after SIGTERM to finish a step and write a checkpoint; it kills them after 30 otherwise.
GRACE=${GRACE:-280}
# Signals that torchrun passes on to its ranks, which write a checkpoint and end; without the last one it would die of it.
PASSED_ON=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

# Says what is wrong and ends with the status of a mistake in the call.
refuse() {
    echo "error: $*" >&2
    exit 2
}

# Splits --dry-run from the rest and refuses what `flava-ds config` refuses, before anything is started.
read_arguments() {
    DRY_RUN=no
    if [ "${1:-}" = --dry-run ]; then
        DRY_RUN=yes
        shift
    fi
    if [ $# -eq 0 ]; then
        refuse "no recipe; usage: ${0##*/} [--dry-run] RECIPE [overrides]"
    fi
    flava-ds config "$@" >/dev/null
    ARGUMENTS=("$@")
}

# Sets COMMAND to torchrun with the rendezvous options given, then `--`, then what stands before torchrun on the command line.
compose_torchrun() {
    local rendezvous=()
    while [ "$1" != -- ]; do
        rendezvous+=("$1")
        shift
    done
    shift
    # Without the second variable, restarted workers read the addresses of the dead ones, and most restarts hang (pytorch issue 135712).
    COMMAND=("$@" env "$SAFE_PATH" "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE"
        torchrun "${rendezvous[@]}" --signals_to_handle "$PASSED_ON" --max_restarts "${RESTARTS:-2}" --module "$MODULE" "${ARGUMENTS[@]}")
}

# Counts NVIDIA GPUs, at least 1.
count_gpus() {
    local found=0
    if command -v nvidia-smi >/dev/null; then
        found=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
    fi
    echo $((found > 0 ? found : 1))
}

# Prints a command in a form that a shell reads back.
print_command() {
    local word shown=()
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_.,:/=+-]+$ ]] || word=${word@Q}
        shown+=("$word")
    done
    echo "${shown[*]}"
}

# Becomes the command, or prints it.
run_or_print() {
    if [ "$DRY_RUN" = yes ]; then
        print_command "$@"
    else
        exec "$@"
    fi
}
