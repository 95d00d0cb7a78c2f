#!/usr/bin/env bash
# Everything that needs a GPU, in parts of less than ten minutes: every operator against fp64 and against its
# peers, and training steps of flava_base with their MFU. Parts that have finished on this device are
# skipped. A table comes last.
#
#   benchmarks/gpu_suite.sh [--out FOLDER] [--wheels FOLDER] [--python PYTHON] [--only PATTERN] [--cpu]
#                           [--dry-run]
#
#   --out      folder for logs, rows and finished parts (default: runs/gpu_suite), with a subfolder named
#              after the device or "cpu"; remove NAME.done there to repeat a part
#   --wheels   first installs each wheel in FOLDER, offline and without dependencies; these, and pytest, must
#              be among the wheels
#   --only     parts whose name matches a shell pattern: 'check-*', 'bench-varlen_attention', train
#   --cpu      the same parts in about a minute on a CPU with the references, to test the suite itself
#   --dry-run  prints the commands without running them
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/runs/gpu_suite wheels="" python=python3 only='*' cpu="" dry=""
seconds=590

usage() { sed -n '2,17s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
    --out | --wheels | --python | --only)
        [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
        case $1 in --out) out=$2 ;; --wheels) wheels=$2 ;; --python) python=$2 ;; --only) only=$2 ;; esac
        shift 2
        ;;
    --cpu) cpu=yes; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: '$1' is not an option; --help lists them" >&2; exit 2 ;;
    esac
done

export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET
case $out in /*) ;; *) out=$PWD/$out ;; esac
case $wheels in /* | "") ;; *) wheels=$PWD/$wheels ;; esac
cd "$root"
parts=() failed=()

# install_wheels: one by one, so that one that does not fit this machine does not affect the others; pip skips
# installed ones
install_wheels() {
    local wheel refused=0
    for wheel in "$wheels"/*.whl; do
        if [ -n "$dry" ]; then
            printf 'wheels: %s\n' "$python -m pip install --quiet --no-index --no-deps $wheel"
        elif ! "$python" -m pip install --quiet --no-index --no-deps "$wheel"; then
            echo "error: ${wheel##*/} does not install (pip's reason is above);" \
                "carry one for $("$python" -V) on this platform" >&2
            refused=$((refused + 1))
        fi
    done
    [ "$refused" -eq 0 ] || exit 2
}

# device: name of the folder for this machine's results
device() {
    [ -z "$cpu" ] || { echo cpu; return; }
    "$python" -c 'import re, torch
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))'
}

# part NAME COMMAND...: runs a part unless it has finished before; the last line of its log is its result
part() {
    local name=$1 status=0 begun=$SECONDS
    shift
    # shellcheck disable=SC2254  # a pattern is what --only is for
    case $name in $only) ;; *) return 0 ;; esac
    parts+=("$name")
    if [ -n "$dry" ]; then
        printf '%s: %s\n' "$name" "$*"
        return 0
    fi
    if [ -e "$out/$name.done" ]; then
        echo "== $name: finished before"
        return 0
    fi
    echo "== $name"
    timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        printf '%s s\t%s\n' "$((SECONDS - begun))" \
            "$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1)" >"$out/$name.done"
    else
        failed+=("$name")
        tail -n 20 "$out/$name.log"
        [ "$status" -ne 124 ] || echo "error: $name took more than $seconds s; what was compiled is kept," \
            "so start again to go on" >&2
    fi
}

if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "error: $wheels is no folder" >&2; exit 2; }
    install_wheels
fi

operators=$("$python" -c 'import flava_kernels; print(*flava_kernels.OPS)')
if [ -n "$cpu" ]; then
    test='test_the_reference_equals' marker='not triton and not gpu' bench=(--device cpu --size quick)
    steps=(--recipe flava_debug --steps 40 --batch 8)
else
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || [ -n "$dry" ] ||
        { echo "error: torch finds no GPU; --cpu runs without" >&2; exit 2; }
    test='on_the_gpu' marker='gpu' bench=()
    steps=(--recipe flava_base --steps 40 --batch 256)
fi

if [ -z "$dry" ]; then
    "$python" -c 'import pytest' 2>/dev/null || {
        echo "error: $python has no pytest;" \
            "install it, or carry its wheels (pytest, pluggy, iniconfig, packaging)" >&2
        exit 2
    }
    out=$out/$(device)
    mkdir -p "$out"
fi

for operator in $operators; do
    part "check-$operator" \
        "$python" -m pytest -m "$marker" -k "$test and [$operator-" tests/kernels/test_op.py
done
for operator in $operators; do
    part "bench-$operator" \
        "$python" -m flava_kernels.bench --op "$operator" "${bench[@]}" --csv "$out/bench.csv"
done
part train "$python" benchmarks/train_steps.py --out "$out/train" "${steps[@]}"

[ -z "$dry" ] || exit 0
printf '\n%-28s %s\n' part result
for name in "${parts[@]}"; do
    printf '%-28s %s\n' "$name" "$(cat "$out/$name.done" 2>/dev/null || echo "failed: $out/$name.log")"
done
[ ${#failed[@]} -eq 0 ]
