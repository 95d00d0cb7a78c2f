# Shared by the launchers; sourced, not executed.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -d "$here/.venv/bin" ]; then
    PATH="$here/.venv/bin:$PATH"
fi
MODULE=flava_ds.train
# Keeps Python from importing files in the working directory, which may be a folder of downloaded data.
SAFE_PATH=PYTHONSAFEPATH=1
export "${SAFE_PATH?}"
# Runs torchrun with what the ranks need to stop with a checkpoint, and ends with their status.
SUPERVISOR=flava_ds.ranks.supervise
# Seconds after SIGTERM for the ranks to finish a step and write a checkpoint; torchrun's default is 30.
GRACE=${GRACE:-280}

# Prints an error and exits with the status of a usage error.
refuse() {
    echo "error: $*" >&2
    exit 2
}

# Splits --dry-run from the other arguments; rejects what `flava-ds config` rejects before starting anything,
# and a run without its inputs, unless it will run ELSEWHERE.
read_arguments() {
    DRY_RUN=no
    if [ "${1:-}" = --dry-run ]; then
        DRY_RUN=yes
        shift
    fi
    if [ $# -eq 0 ]; then
        refuse "no recipe; usage: ${0##*/} [--dry-run] RECIPE [overrides]"
    fi
    local checks=()
    if [ "$DRY_RUN" = no ] && [ "${ELSEWHERE:-no}" = no ]; then
        checks=(--check-inputs)
    fi
    flava-ds config "$@" "${checks[@]}" >/dev/null
    ARGUMENTS=("$@")
}

# Sets COMMAND to a torchrun call: compose_torchrun RENDEZVOUS_OPTIONS -- COMMAND_PREFIX.
compose_torchrun() {
    local rendezvous=()
    while [ "$1" != -- ]; do
        rendezvous+=("$1")
        shift
    done
    shift
    COMMAND=("$@" env "$SAFE_PATH" "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE" python3 -m "$SUPERVISOR" "${rendezvous[@]}"
        --max_restarts "${RESTARTS:-2}" --module "$MODULE" "${ARGUMENTS[@]}")
}

# Counts NVIDIA GPUs, of which CUDA_VISIBLE_DEVICES may name some; at least 1.
count_gpus() {
    local found=0 visible
    if command -v nvidia-smi >/dev/null; then
        found=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
    fi
    if [ "$found" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        found=${#visible[@]}
    fi
    echo $((found > 0 ? found : 1))
}

# Prints a command, quoted so that it can be pasted into a shell.
print_command() {
    local word shown=()
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_.,:/=+-]+$ ]] || word=${word@Q}
        shown+=("$word")
    done
    echo "${shown[*]}"
}

# Executes the command, or prints it with --dry-run.
run_or_print() {
    if [ "$DRY_RUN" = yes ]; then
        print_command "$@"
    else
        exec "$@"
    fi
}
