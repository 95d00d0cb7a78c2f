# Shared by the launchers: sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -d "$here/.venv/bin" ]; then
    PATH="$here/.venv/bin:$PATH"
fi

# Splits --dry-run from the rest and refuses what `flava-ds config` refuses, before anything is started.
read_arguments() {
    DRY_RUN=no
    if [ "${1:-}" = --dry-run ]; then
        DRY_RUN=yes
        shift
    fi
    if [ $# -eq 0 ]; then
        echo "error: no recipe; usage: ${0##*/} [--dry-run] RECIPE [overrides]" >&2
        exit 2
    fi
    flava-ds config "$@" >/dev/null
    ARGUMENTS=("$@")
}

# Counts NVIDIA GPUs, at least 1.
count_gpus() {
    local found=0
    if command -v nvidia-smi >/dev/null; then
        found=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
    fi
    echo $((found > 0 ? found : 1))
}

# Becomes the command, or prints it in a form that a shell reads back.
run_or_print() {
    if [ "$DRY_RUN" = yes ]; then
        echo "${*@Q}" | sed -E "s/'([A-Za-z0-9_.,:\/=+-]+)'/\1/g"
    else
        exec "$@"
    fi
}
