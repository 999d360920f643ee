#!/usr/bin/env bash
# One run as several processes on this machine. They find each other through the JAX_* variables set here.
#
#   launch/local.sh [--processes N] [--devices K] [--logs DIR] [--dry-run] -- COMMAND...
#
# --processes  how many; default: one for each GPU, 2 without any
# --devices    K virtual CPU devices for each process, no GPU; without it every process gets the GPU of its number
# --logs       what processes 1 to N-1 say; default: a new folder below ${TMPDIR:-/tmp}
# --dry-run    prints what would be started
#
# Signals (TERM, INT) go to all processes. When one fails the others get ${GRACE:-10} seconds to end, and its
# exit code is handed on.
set -uo pipefail
set -m # a group for each process, so that it can be ended with its children

processes='' devices='' logs='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes | --devices | --logs)
      [ $# -gt 1 ] || { echo "error: $1: needs a value" >&2 && exit 2; }
      printf -v "${1#--}" %s "$2" && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    --) shift && break ;;
    *) echo "error: $1: not an option (a command comes after --)" >&2 && exit 2 ;;
  esac
done
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
: "${processes:=$((gpus > 0 ? gpus : 2))}"
[ "$gpus" -gt 0 ] || : "${devices:=1}"
for number in "$processes" "${devices:-1}"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || { echo "error: '$number': must be a whole number, at least 1" >&2 && exit 2; }
done
[ $# -gt 0 ] || { echo "error: no command; usage: launch/local.sh [options] -- COMMAND..." >&2 && exit 2; }
if [ -z "$devices" ] && [ "$processes" -gt "$gpus" ]; then
  echo "error: --processes $processes: this machine has $gpus GPUs (--devices K runs on the CPU)" >&2 && exit 2
fi

# Below the ports that the system deals out itself, and nobody answers there.
port=$((20000 + RANDOM % 10000))
while (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
at="127.0.0.1:$port"
shared=(JAX_COORDINATOR_ADDRESS="$at" JAX_COORDINATOR_BIND_ADDRESS="$at" JAX_NUM_PROCESSES="$processes")
[ -n "$dry" ] || [ -n "$logs" ] || logs=$(mktemp -d "${TMPDIR:-/tmp}/perturbdiff-XXXXXX")
[ -n "$dry" ] || mkdir -p "$logs" || exit 2

pids=()
for ((k = 0; k < processes; k++)); do
  own=("${shared[@]}" JAX_PROCESS_ID="$k")
  if [ -n "$devices" ]; then
    own+=(JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
  else
    own+=(CUDA_VISIBLE_DEVICES="$k")
  fi
  if [ -n "$dry" ]; then
    printf '%q ' env "${own[@]}" "$@" && echo
  elif [ "$k" = 0 ]; then
    env "${own[@]}" "$@" < /dev/null &
  else
    env "${own[@]}" "$@" < /dev/null > "$logs/process-$k.log" 2>&1 &
  fi
  [ -n "$dry" ] || pids+=($!)
done
[ -z "$dry" ] || exit 0

heard=''
# shellcheck disable=SC2329  # called by the traps
tell() { heard=1 && for pid in "${pids[@]}"; do kill -"$1" "$pid" 2> /dev/null; done; }
trap 'tell TERM' TERM
trap 'tell INT' INT HUP
code=0
for _ in "${pids[@]}"; do
  while heard='' && wait -n; code=$? && [ -n "$heard" ]; do :; done # a signal ends the wait, not a process
  [ "$code" = 0 ] || [ "$code" = 127 ] || break # 127: none is left
done
if [ "$code" != 0 ]; then
  echo "A process ended with code $code; the others are ended. Their words: $logs" >&2
  for ((i = 0; i < 10 * ${GRACE:-10} && $(jobs -rp | wc -l) > 0; i++)); do sleep 0.1; done # they may be ending by themselves
  { for pid in $(jobs -rp); do kill -KILL -- "-$pid"; done && wait; } 2> /dev/null
fi
exit "$code"
