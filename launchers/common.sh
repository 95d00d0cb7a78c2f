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
GRACE=${GRACE:-280} RESTARTS=${RESTARTS:-2} PORT=${PORT:-29500}

# Prints an error and exits with the status of a usage error.
refuse() {
    echo "error: $*" >&2
    exit 2
}

# Splits --dry-run, wherever it stands, from the other arguments. --help prints the head of the script, or a
# recipe's fields, and ends.
read_arguments() {
    DRY_RUN=no ARGUMENTS=()
    local word help=no
    for word in "$@"; do
        case $word in
        --dry-run) DRY_RUN=yes ;;
        -h | --help) help=yes ;;
        --ranks | --ranks=* | --check-inputs)
            refuse "$word is not for ${0##*/}, whose settings say how many ranks there are; see --help"
            ;;
        *) ARGUMENTS+=("$word") ;;
        esac
    done
    if [ "$help" = yes ] && [ ${#ARGUMENTS[@]} -gt 0 ]; then
        exec flava-ds config "${ARGUMENTS[@]}" --help
    elif [ "$help" = yes ]; then
        sed -n '2,${/^#SBATCH/d; /^#/!q; s/^# \{0,1\}//p}' "$0"
        exit
    elif [ ${#ARGUMENTS[@]} -eq 0 ]; then
        refuse "no recipe; usage: ${0##*/} [--dry-run] RECIPE [overrides]"
    fi
}

# Refuses a setting that is no whole number from LEAST to MOST: require_number NAME LEAST [MOST].
require_number() {
    local value=${!1} most=${3:-999999999}
    if ! [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((value < $2 || value > most)); then
        refuse "$1='$value': use a whole number of at least $2${3:+ and at most $3}"
    fi
}

# Refuses before anything starts what `flava-ds config` refuses, batches that cannot be divided among any of
# these numbers of ranks, and a run without its inputs, unless it will run ELSEWHERE: check_run RANKS...
check_run() {
    local number checks=()
    require_number RESTARTS 0
    require_number PORT 0 65535
    require_number GRACE 0
    for number in "$@"; do
        checks+=(--ranks "$number")
    done
    if [ "$DRY_RUN" = no ] && [ "${ELSEWHERE:-no}" = no ]; then
        checks+=(--check-inputs)
    fi
    flava-ds config "${ARGUMENTS[@]}" "${checks[@]}" >/dev/null
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
        --max_restarts "$RESTARTS" --module "$MODULE" "${ARGUMENTS[@]}")
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
