#!/usr/bin/env bash
# Everything that needs a GPU, in parts of less than ten minutes, the most telling first: a case of every
# operator; runs with kernels and with references that must be equal, one of which stops and goes on; training
# steps of flava_base with their MFU; steps of 64, 128 and 256 pairs with a trace each, for
# benchmarks/forecast.py; attention, LayerNorm and GELU against fp64 and their peers; compiled steps, which must
# have the losses of eager ones; the other operators; the other tests that need a GPU; apex's optimizer; the
# case of every operator again under compute-sanitizer. Parts that have finished on this device are skipped, and
# so are workloads that a part had measured when its time was up. An operator whose error at a real size is
# beyond its limits fails its part. A table comes last.
#
#   benchmarks/gpu_suite.sh [--out FOLDER] [--minutes N] [--archive FILE.tgz] [--wheels FOLDER]
#                           [--python PYTHON] [--only PATTERN] [--cpu] [--dry-run]
#
#   --out      folder for logs, rows and finished parts (default: runs/gpu_suite), with a subfolder named
#              after the device or "cpu"; remove NAME.done there to repeat a part
#   --minutes  the whole run ends by then: a part gets what is left, the rest waits for the next run
#   --archive  packs the device's folder into FILE.tgz after every part, whatever has failed; where there is
#              the file and no such folder, e.g. on a fresh machine, the run goes on from the file
#   --wheels   first installs each wheel in FOLDER, offline and without dependencies; these, and pytest, must
#              be among the wheels (benchmarks/collect_wheels.py collects them)
#   --only     parts whose name matches a shell pattern: 'check-*', 'bench-varlen_attention', train
#   --cpu      the same parts in some minutes on a CPU with the references, to test the suite itself; the part
#              kernels-train runs in Triton's interpreter, and tests of the part `others`, which need a GPU, are
#              collected and not run
#   --dry-run  prints the commands without running them
#
# FLAVA_COMMIT names the commit in rows and results, where a copy of the repository has no history; the table
# marks parts that another commit has finished. With APEX_SOURCES, a checkout of NVIDIA's apex, the part apex
# compiles its optimizer and runs it (tests/optimizers/test_apex_adam.py); that needs nvcc and ninja.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/runs/gpu_suite wheels="" python=python3 only='*' cpu="" dry="" minutes="" archive=""
seconds=590 enough=15

usage() { sed -n '2,31s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
    case $1 in
    --out | --wheels | --python | --only | --minutes | --archive)
        [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
        case $1 in
        --out) out=$2 ;; --wheels) wheels=$2 ;; --python) python=$2 ;; --only) only=$2 ;;
        --minutes) minutes=$2 ;; --archive) archive=$2 ;;
        esac
        shift 2
        ;;
    --cpu) cpu=yes; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: '$1' is not an option; --help lists them" >&2; exit 2 ;;
    esac
done

export PYTHONPATH="$root:$root/kernels:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET
case $out in /*) ;; *) out=$PWD/$out ;; esac
case $wheels in /* | "") ;; *) wheels=$PWD/$wheels ;; esac
case $archive in /* | "") ;; *) archive=$PWD/$archive ;; esac
case ${APEX_SOURCES:-} in /* | "") ;; *) export APEX_SOURCES=$PWD/$APEX_SOURCES ;; esac
case $minutes in
*[!0-9]*) echo "error: --minutes takes a whole number, not '$minutes'" >&2; exit 2 ;;
esac
cd "$root"
parts=() failed=() waiting=()

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
    local name=$1 status=0 begun=$SECONDS left=$seconds
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
    if [ -n "$minutes" ]; then
        left=$((minutes * 60 - SECONDS < seconds ? minutes * 60 - SECONDS : seconds))
        if [ "$left" -lt "$enough" ]; then
            waiting+=("$name")
            return 0
        fi
    fi
    echo "== $name"
    timeout --kill-after=10 "$left" "$@" >"$out/$name.log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        printf '%s s\t%s\n%s\n' "$((SECONDS - begun))" \
            "$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1)" "$commit" >"$out/$name.done"
    else
        failed+=("$name")
        tail -n 20 "$out/$name.log"
        [ "$status" -ne 124 ] || echo "error: $name took more than $left s; what it compiled and" \
            "measured is kept, so start again to go on" >&2
    fi
    pack
}

# unpack: brings the folder of this device from an archive of it; another device's is not overwritten
unpack() {
    [ -e "$archive" ] || return 0
    local name held
    name=$(basename "$out")
    held=$(tar -tzf "$archive" | sed -n 1p)
    [ "${held%%/*}" = "$name" ] || {
        echo "error: $archive has the results of '${held%%/*}', and this is '$name'; name another file" >&2
        exit 2
    }
    [ -e "$out" ] || tar -xzf "$archive" -C "$(dirname "$out")"
}

# pack: writes the archive, whole at any time
pack() {
    [ -n "$archive" ] || return 0
    tar -czf "$archive.part" -C "$(dirname "$out")" --exclude=data --exclude=checkpoints "$(basename "$out")"
    mv "$archive.part" "$archive"
}

# result NAME: the line of its part in the table
result() {
    local line="failed: $out/$1.log" of=$commit
    [ ! -e "$out/$1.done" ] || { read -r line && read -r of; } <"$out/$1.done"
    case " ${waiting[*]} " in *" $1 "*) line="waits: the $minutes minutes are over, start again" ;; esac
    [ "$of" = "$commit" ] || line="$line (of commit $of)"
    echo "$line"
}

if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "error: $wheels is no folder" >&2; exit 2; }
    install_wheels
fi

{ read -r commit && read -r operators; } < <("$python" -c 'import flava_kernels
from flava_kernels.bench.machine import commit
print(commit(), " ".join(flava_kernels.OPS), sep="\n")')
first="varlen_attention layer_norm add_layer_norm linear_gelu"
if [ -n "$cpu" ]; then
    test='test_the_reference_equals' marker='not triton and not gpu' interpreted='triton and not gpu'
    bench=(--device cpu --size quick)
    steps=(--recipe flava_debug --batch 8) pairs=(--recipe flava_debug --batch) collect=(--collect-only -q)
else
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || [ -n "$dry" ] ||
        { echo "error: torch finds no GPU; --cpu runs without" >&2; exit 2; }
    test='on_the_gpu' marker='gpu' interpreted='gpu' bench=()
    steps=(--recipe flava_base --batch 256) pairs=(--recipe flava_base --batch) collect=()
fi
small="$test and float16 and (to-128 or 37x64 or 37x24x40 or to-64 or three or 33-all or mixed)"

if [ -z "$dry" ]; then
    "$python" -c 'import pytest' 2>/dev/null || {
        echo "error: $python has no pytest;" \
            "install it, or carry its wheels (pytest, pluggy, iniconfig, packaging)" >&2
        exit 2
    }
    mkdir -p "$out"
    out=$out/$(device)
    [ -z "$archive" ] || unpack
    mkdir -p "$out"
fi

# both OPERATOR: against fp64, then against its peers
both() {
    part "check-$1" "$python" -m pytest -m "$marker" -k "$test and [$1-" tests/kernels/test_op.py
    part "bench-$1" \
        "$python" -m flava_kernels.bench --op "$1" "${bench[@]}" --resume --csv "$out/bench.csv"
}

smoke=("$python" -m pytest -m "$marker" -k "$small" tests/kernels/test_op.py)
part smoke "${smoke[@]}"
part kernels-train "$python" -m pytest -rs -m "$interpreted" tests/training/test_trainer_on_kernels.py
part train "$python" benchmarks/train_steps.py --out "$out/train" "${steps[@]}" --steps 40
for size in 64 256 128; do
    part "pairs-$size" "$python" benchmarks/train_steps.py --out "$out/pairs-$size" "${pairs[@]}" "$size" \
        --kind pair --steps 20 --override --logging.profile-steps 16 4
done
for operator in $first; do both "$operator"; done
part compiled-64 "$python" benchmarks/train_steps.py --out "$out/compiled-64" "${pairs[@]}" 64 \
    --kind pair --steps 20 --like "$out/pairs-64" --override --training.compile-blocks \
    --training.compile-codebook --training.pad-to-multiple-of 256
for operator in $operators; do
    case " $first " in *" $operator "*) ;; *) both "$operator" ;; esac
    # Training gives these two features in fp32, whose products are others.
    case $operator in
        info_nce | sigmoid_loss)
            part "bench-$operator-fp32" "$python" -m flava_kernels.bench --op "$operator" "${bench[@]}" \
                --dtype fp32 --resume --csv "$out/bench.csv"
            ;;
    esac
done
mapfile -t others < <(grep -rl 'mark\.gpu\b' tests --include='test_*.py' --exclude='test_op.py' \
    --exclude='test_apex_adam.py' --exclude='test_trainer_on_kernels.py' | sort)
part others "$python" -m pytest -rs -m gpu "${collect[@]}" "${others[@]}"
part apex "$python" -m pytest -rs tests/optimizers/test_apex_adam.py
if [ -n "$cpu$dry" ] || command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        sanitizer=(compute-sanitizer --tool "$tool" --error-exitcode 99)
        [ -z "$cpu" ] || sanitizer=(env MALLOC_CHECK_=3 MALLOC_PERTURB_=85)
        part "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" "${smoke[@]}"
    done
else
    echo "== memcheck, racecheck: left out: compute-sanitizer is not installed (the CUDA toolkit has it)"
fi

[ -z "$dry" ] || exit 0
printf '\n%-28s %s\n' part result
for name in "${parts[@]}"; do
    printf '%-28s %s\n' "$name" "$(result "$name")"
done | tee "$out/table.txt"
pack
[ -z "$archive" ] || echo "packed: $archive"
[ ${#failed[@]} -eq 0 ] && [ ${#waiting[@]} -eq 0 ]
