#!/usr/bin/env bash
# All hosts of a Cloud TPU slice at once.
#
#   launch.sh SLICE ZONE install              copy this commit to every host and install it there
#   launch.sh SLICE ZONE preflight            do all hosts start, with the same code?
#   launch.sh SLICE ZONE run COMMAND...       run a command in the checkout on every host
#   launch.sh SLICE ZONE collect N DIR        fetch DIR/part-* and job.json of N hosts, then merge
set -euo pipefail

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

(($# >= 3)) || usage
slice=$1 zone=$2 action=$3
shift 3
tpu=(gcloud compute tpus tpu-vm)
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)

# The command's words arrive on the hosts as they were typed here.
on_all_hosts() {
    "${tpu[@]}" ssh "$slice" --zone "$zone" --worker=all --command "$1"
}

case $action in
install)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git -C "$root" archive --format=tar.gz HEAD >"$archive"
    "${tpu[@]}" scp "$archive" "$slice:jaxdecode.tar.gz" --zone "$zone" --worker=all
    # Files of another commit that stayed behind would make the hosts differ.
    on_all_hosts "mkdir -p jaxdecode && cd jaxdecode && rm -rf jaxdecode pallas_kernels configs && \
tar xzf ../jaxdecode.tar.gz && make install && .venv/bin/python -m pip install -q -e '.[tpu]'"
    ;;
preflight)
    on_all_hosts "cd jaxdecode && .venv/bin/python tpu_scripts/preflight.py"
    ;;
run)
    (($# >= 1)) || usage
    on_all_hosts "cd jaxdecode && PATH=\$PWD/.venv/bin:\$PATH $(printf '%q ' "$@")"
    ;;
collect)
    (($# == 2)) || usage
    mkdir -p "$2"
    for ((host = 0; host < $1; host++)); do
        "${tpu[@]}" scp "$slice:jaxdecode/$2/*" "$2" --zone "$zone" --worker="$host"
    done
    jaxdecode merge "$2"
    ;;
*) usage ;;
esac
