#!/usr/bin/env bash
# Fills in launch/gke_jobset.yaml and hands it to kubectl.
#
#   launch/gke.sh                the cluster is the one that kubectl speaks to
#   launch/gke.sh --dry-run      prints the JobSet; the cluster checks it with | kubectl apply --dry-run=server -f -
#
# Every variable can be set here or in the environment.
set -euo pipefail

NAME=${NAME:-perturbdiff}
IMAGE=${IMAGE:-REGION-docker.pkg.dev/PROJECT/REPOSITORY/perturbdiff:latest} # has the package, jax[tpu] and the config
CONFIG=${CONFIG:-configs/own_data.py}                                       # as the image names it
BUCKET=${BUCKET:-my-bucket}                                                 # holds data and work directory
WORKDIR=${WORKDIR:-runs/own}                                                # in the bucket, which is mounted at /bucket
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}                                 # of Kubernetes; may write the bucket
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
TOPOLOGY=${TOPOLOGY:-4x4}
HOSTS=${HOSTS:-4}        # machines of the slice: 16 chips, 4 in each
CHIPS=${CHIPS:-4}        # of a machine
RESTARTS=${RESTARTS:-20} # after failures and interruptions

filled=$(< "$(dirname "$0")/gke_jobset.yaml")
for name in NAME IMAGE CONFIG BUCKET WORKDIR SERVICE_ACCOUNT ACCELERATOR TOPOLOGY HOSTS CHIPS RESTARTS; do
  filled=${filled//"\${$name}"/"${!name}"}
done
case ${1-} in
  --dry-run) printf '%s\n' "$filled" ;;
  '') kubectl apply -f - <<< "$filled" ;;
  *) echo "error: $1: not an option; usage: launch/gke.sh [--dry-run]" >&2 && exit 2 ;;
esac
