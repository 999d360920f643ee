#!/usr/bin/env bash
# Every regime of the paper on one data set: pretrain, predict zero-shot, finetune, train from scratch, with all training
# cells and with few; then one table and one page that compare them on the same held-out conditions.
#
#   launch/regimes.sh [--full] [--share X] [--workdir DIR] [--dry-run] [-- --config.x.y=v ...]
#
# --full     the paper's sizes, on stores/pretraining/* (docs/benchmarks.md); without it simulated cells, in minutes
# --share    of the training cells, in the low-data runs (0.05)
# --workdir  gets a folder for each run (runs/regimes)
# --dry-run  prints what would be run
#
# What stands behind -- goes to every training. Given again, it goes on where it was broken off.
set -euo pipefail

small=:smoke share=0.05 workdir=runs/regimes dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --full) small='' && shift ;;
    --share | --workdir)
      [ $# -gt 1 ] || { echo "error: $1: needs a value" >&2 && exit 2; }
      printf -v "${1#--}" %s "$2" && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    --) shift && break ;;
    *) echo "error: $1: not an option (settings come after --)" >&2 && exit 2 ;;
  esac
done
# Five trainings of which four are one program: what one has compiled the others take from here.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
configs=$(cd "$(dirname "$0")/../configs" && pwd)
store=stores/pretraining/pbmc
[ -z "$small" ] || store=$workdir/pretrain/stores/pbmc

run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
  else
    echo "+ $*" && "$@"
  fi
}
train() { # train NAME CONFIG [SETTING ...]
  local name=$1 config=$2 && shift 2
  [ -f "$workdir/$name/report.html" ] ||
    run "${PYTHON:-python}" -m perturbdiff_jax.main "--config=$configs/$config.py$small" "--workdir=$workdir/$name" "$@"
}
perturbdiff() { run "${PYTHON:-python}" -m perturbdiff_jax.cli "$@"; }

# 1. Marginals of all sources. What it knows of the held-out conditions without more is in pretrain/zero_shot/.
train pretrain pretrain "$@"
# 2. The same cells and genes from pretrained weights, and from none; with all training cells, and with a share of them.
cells=("--config.data.store=$store")
few=("--config.data.fraction=$share")
pretrained=("--config.init_from=$workdir/pretrain/bundle")
train finetuned finetune_pbmc "${cells[@]}" "${pretrained[@]}" "$@"
train scratch finetune_pbmc "${cells[@]}" --config.init_from= "$@"
train finetuned_few finetune_pbmc "${cells[@]}" "${pretrained[@]}" "${few[@]}" "$@"
train scratch_few finetune_pbmc "${cells[@]}" --config.init_from= "${few[@]}" "$@"
# 3. All of them on the same conditions, beside rivals that know all training cells.
perturbdiff evaluate --real "$store" --output "$workdir/compared" \
  --perturbation-key cytokine --control PBS --cell-type-key cell_type --batch-key donor --baselines "$store" --fraction 1 \
  --pred "zero-shot=$workdir/pretrain/zero_shot/pbmc/predictions.h5ad" \
  "finetuned=$workdir/finetuned/predictions.h5ad" "scratch=$workdir/scratch/predictions.h5ad" \
  "finetuned-few=$workdir/finetuned_few/predictions.h5ad" "scratch-few=$workdir/scratch_few/predictions.h5ad"
perturbdiff report --workdir "$workdir/compared"
