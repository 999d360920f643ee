#!/usr/bin/env bash
# One run on all machines of a Cloud TPU slice (the slice itself is yours to make); JAX finds the others by metadata.
#
#   launch/tpu_pod.sh [--dry-run] install      the committed files of this checkout and jax[tpu], on every machine
#   launch/tpu_pod.sh [--dry-run] start [--config.section.key=value ...]      again after an interruption: goes on
#   launch/tpu_pod.sh [--dry-run] watch        what process 0 says
#   launch/tpu_pod.sh [--dry-run] stop         SIGTERM: saves and ends
#
# Every variable can be set here or in the environment; account and project are those of gcloud.
set -euo pipefail

TPU=${TPU:-my-tpu}
ZONE=${ZONE:-us-west4-a}
CONFIG=${CONFIG:-configs/own_data.py}      # in the checkout
WORKDIR=${WORKDIR:-/mnt/bucket/runs/own}   # seen by all machines: a mounted bucket or NFS
PYTHON=${PYTHON:-python3.11}               # of the machines; 3.11 or newer

dry=''
[ "${1-}" = --dry-run ] && dry=1 && shift
verb=${1-}
[ $# -gt 0 ] && shift

run() {
  if [ -z "$dry" ]; then "$@"; return; fi
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@+-]+$ ]] && printf '%s ' "$word" || printf '%s ' "${word@Q}"
  done && echo
}
on() { # machines, command
  run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}
case $verb in
  install)
    archive=${TMPDIR:-/tmp}/perturbdiff_jax.tar.gz
    run git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU:perturbdiff_jax.tar.gz" --zone="$ZONE" --worker=all
    install="$PYTHON -m venv env && env/bin/pip install --quiet \"./perturbdiff_jax[tpu,eval]\""
    on all "mkdir -p perturbdiff_jax && tar xzf perturbdiff_jax.tar.gz -C perturbdiff_jax && $install"
    ;;
  start)
    words=$(printf ' %q' -u -m perturbdiff_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@")
    aside="../perturbdiff.log 2>&1 < /dev/null & echo \$! > ../perturbdiff.pid"
    on all "cd perturbdiff_jax && { setsid ../env/bin/python$words > $aside; }"
    ;;
  watch) on 0 'tail -n 50 -F perturbdiff.log' ;;
  stop) on all "kill -TERM \$(cat perturbdiff.pid)" ;;
  *) echo "error: '$verb': allowed are install, start, watch, stop" >&2 && exit 2 ;;
esac
