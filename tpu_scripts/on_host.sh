#!/usr/bin/env bash
# What one host does. `tpu` sends this file to the hosts of a slice and calls it there; the files
# for xpk, SkyPilot and SLURM call it too.
#
#   on_host.sh install EXTRAS [WHEEL]    unpack what was sent and install it in .venv
#   on_host.sh run OPTIONS COMMAND       start COMMAND, or go back to it if it runs already
#   on_host.sh exec OPTIONS COMMAND      the same in the foreground, without a log
#   on_host.sh stop                      end what `run` started
#
# OPTIONS of run and exec:
#   --devices slice|host    the command sees the chips of the whole slice, or those of this host
#   --bucket gs://B/NAME    keep the outputs there: fetched before, sent every minute and at the end
#   --output FOLDER         an output of the command; may be repeated
#   --env NAME=VALUE        may be repeated
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/.."
state=.job
# Hidden files and unfinished checkpoints are work in progress.
unfinished='(^|.*/)\.[^/]*(/.*)?$|.*orbax-checkpoint-tmp.*'

fail() {
    echo "error: host $HOSTNAME: $*" >&2
    exit 1
}

# Another program may have got the number since.
is_running() {
    [[ -e $state/pid ]] && grep --quiet --text on_host.sh "/proc/$(<$state/pid)/cmdline" 2>/dev/null
}

# Makes .venv with a Python that is new enough; TPU images have 3.10.
make_venv() {
    local python
    for python in python3.12 python3.11 python3; do
        if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$python" -m venv --clear .venv
            return
        fi
    done
    python3 -m pip install --quiet --user uv || fail "no Python >= 3.11 and no uv to bring one"
    python3 -m uv venv --quiet --clear --seed --python 3.12 .venv
}

install() {
    local extras=$1 target=${2-.} options=() stamp pins
    stamp="$extras $({ cat source.tar.gz files.tar.gz 2>/dev/null || true; } | sha256sum)"
    if [[ -e source.tar.gz ]]; then
        if [[ -e .venv/installed && $(<.venv/installed) == "$stamp" ]]; then
            echo "host $HOSTNAME: installed already"
            return
        fi
        ! is_running || fail "a command runs here, with other code or files; wait for it or end it with \`tpu stop\`"
        # Files of another commit that stayed behind would make the hosts differ.
        rm -rf jaxdecode pallas_kernels configs
        tar -xzf source.tar.gz
        [[ ! -e files.tar.gz ]] || tar -xzf files.tar.gz
    fi
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
    pins=constraints/$(.venv/bin/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt
    [[ $target != . ]] || options+=(--editable)
    .venv/bin/python -m pip install --quiet --constraint "$pins" "${options[@]}" "${target}[$extras]"
    echo "$stamp" >.venv/installed
    echo "host $HOSTNAME: installed $(.venv/bin/python -m pip show jaxdecode | sed -n 2p)"
}

# Hides the rest of the slice: a host that ends or is late then holds up no other.
use_own_chips() {
    if [[ -n ${SLURM_LOCALID-} ]]; then
        export CUDA_VISIBLE_DEVICES=$SLURM_LOCALID
        return
    fi
    local chips bounds
    chips=$(find "${TPU_DEVICE_FOLDER:-/dev}" -name 'accel[0-9]*' -o -path '*/vfio/[0-9]*' | wc -l)
    case $chips in
        1) bounds=1,1,1 ;;
        4) bounds=2,2,1 ;;
        8) bounds=2,4,1 ;;
        *) fail "there are $chips TPU chips in /dev, not 1, 4 or 8; is this a TPU VM?" ;;
    esac
    export TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=$bounds
    export TPU_VISIBLE_CHIPS TPU_WORKER_ID=0 CLOUD_TPU_TASK_ID=0 TPU_WORKER_HOSTNAMES=localhost
    TPU_VISIBLE_CHIPS=$(seq --separator=, 0 $((chips - 1)))
}

# Fetches what an earlier run has kept.
restore() {
    local output
    command -v gcloud >/dev/null || fail "gcloud is not here, but $bucket needs it"
    for output in "${outputs[@]}"; do
        if gcloud storage ls "$bucket/$output" >/dev/null 2>&1; then
            mkdir -p "$output"
            gcloud storage rsync --recursive "$bucket/$output" "$output"
        fi
    done
}

keep() {
    local output
    for output in "${outputs[@]}"; do
        [[ ! -d $output ]] ||
            gcloud storage rsync --recursive --exclude="$unfinished" "$output" "$bucket/$output"
    done
}

exec_command() {
    local devices=slice bucket='' outputs=() child saver code=0
    while [[ ${1-} == --* ]]; do
        case $1 in
            --devices) devices=$2 ;;
            --bucket) bucket=$2 ;;
            --output) outputs+=("$2") ;;
            --env) export "${2?}" ;;
            *) fail "unknown option $1" ;;
        esac
        shift 2
    done
    [[ $devices != host ]] || use_own_chips
    export PATH=$PWD/.venv/bin:$PATH
    [[ -z $bucket ]] || restore
    # In a process group of its own, so that a signal reaches all of it, once.
    set -m
    bash -c "$1" &
    child=$!
    set +m
    trap 'kill -TERM -- "-$child" 2>/dev/null || true' TERM INT
    if [[ -n $bucket ]]; then
        while sleep "${KEEP_SECONDS:-60}"; do keep || true; done >/dev/null 2>&1 &
        saver=$!
    fi
    # A signal ends `wait`, but the command may still have something to save.
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    if [[ -n $bucket ]]; then
        kill "$saver" 2>/dev/null || true
        keep || fail "the command ended with exit code $code, but $bucket has not all of its outputs"
    fi
    return "$code"
}

run() {
    local pid code
    mkdir -p "$state"
    if is_running; then
        [[ $(<$state/command) == "$*" ]] ||
            fail "another command runs here; wait for it or end it with \`tpu stop\`"
        echo "host $HOSTNAME: the command runs already; here is its log"
    else
        rm -f $state/exit
        echo "$*" >$state/command
        # Now, since `tail` may look for it before the command has begun.
        : >$state/log
        # It outlives the connection: what it says goes to a file, and `run` goes back to it.
        setsid bash "$self" detached "$@" </dev/null >>$state/log 2>&1 &
        echo $! >$state/pid
    fi
    pid=$(<$state/pid)
    tail --pid="$pid" --sleep-interval=0.2 --lines=+1 --follow $state/log
    code=$(cat $state/exit 2>/dev/null || echo 1)
    echo "host $HOSTNAME: exit code $code"
    exit "$code"
}

detached() {
    trap 'echo $? >$state/exit' EXIT
    exec_command "$@"
}

stop() {
    if ! is_running; then
        echo "host $HOSTNAME: nothing runs"
        return
    fi
    kill -TERM "$(<$state/pid)"
    tail --pid="$(<$state/pid)" --sleep-interval=0.2 --follow /dev/null
    echo "host $HOSTNAME: ended"
}

action=${1-}
[[ $# -eq 0 ]] || shift
case $action in
    install | run | detached | stop) "$action" "$@" ;;
    exec) exec_command "$@" ;;
    *) fail "unknown action '$action'; see the head of $self" ;;
esac
