#!/usr/bin/env bash
# Makes a pretrained ViT-Ti/16 adaptive in every way that the library has, and
# trains its rivals, on a folder of photographs:
#
#   bash benchmarks/pretrained.sh WEIGHTS IMAGES DIR [RUN...]
#
#   WEIGHTS  the file of a ViT-Ti/16 of 224 px and 1000 classes, see
#            docs/weights.md
#   IMAGES   a folder with train/CLASS/* and val/CLASS/*
#   DIR      every RUN becomes a directory in it
#   RUN      one of these names; without any, all of them, in this order:
#
#   dense              tuned for the classes of IMAGES; most others start from it
#   exits0             exits, seed 0
#   merged_exits0      exits and merged tokens
#   small_heads0       exits on px160 as it is, images of 160 px
#   small_exits0       the same, and all of it tuned together
#   policy0            a policy
#   merged_policy0     a policy and merged tokens
#   everything0        exits on merged_policy0
#   small_dense        px160 tuned on for dropped layers, the start of:
#   small_policy0      a policy, images of 160 px
#   small_everything0  exits on small_policy0
#   px160 px128 px224  the rivals: smaller images, and the full size tuned alike,
#   merged             and merged tokens, tuned for them
#   agree_exits0       exits that agree with WEIGHTS as it is, without labels
#   agree_policy0      a policy that agrees with it
#
# Seeds 1 and 2 of the adaptive runs follow; any other is made by its name, such
# as exits3. The same command goes on where it was stopped. $PYTHON is the
# interpreter, python by default; $TRAIN_FLAGS are added to every training.
# docs/results/pretrained.md has results of some of these runs.
set -euo pipefail

usage() { echo "pretrained.sh: $*; see the head of $0" >&2; exit 2; }

(( $# >= 3 )) || usage 'it takes WEIGHTS IMAGES DIR'
[[ -f $1 ]] || usage "there is no file '$1'"
[[ -d $2 ]] || usage "there is no folder '$2'"
# Symbolic links stay: their names say what they are, those of caches do not.
weights=$(realpath -s "$1") images=$(realpath -s "$2")
mkdir -p "$3" || usage "cannot make '$3'"
dir=$(cd "$3" && pwd)
shift 3
python=$(command -v "${PYTHON:-python}") || usage "there is no '${PYTHON:-python}'"
python=$(realpath -s "$python")
export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$PYTHONPATH"

say() { echo "== $*"; }
phases() { printf -- "--config.phases=("; printf "'%s'," "$@"; echo ')'; }

train() {  # train NAME CONFIG ARGUMENTS...
  local name=$1 config=$2 started=$SECONDS
  shift 2
  say "$name"
  "$python" train.py --config="configs/$config.py" --workdir="$dir/$name" \
      --config.data.data_dir="$images" --config.data.holdout=0.25 \
      --config.data.seed=0 --config.model.remat=False "$@" ${TRAIN_FLAGS:-}
  say "$name: $((SECONDS - started)) s"
}

start() { echo "--config.init.workdir=$dir/$1"; echo "--config.init.phase=$2"; }

pretrained=(--config.init.weights="$weights")
tuned=("$(phases dense)" --config.dense.nested=0 --config.dense.mask_weight=0)
no_merging=(--config.model.merge=0)
merging=(--config.model.merge=13 --config.model.merge_schedule=falling)
views=(--config.classifier_wise.views=2 --config.classifier_wise.batch_size=128)
pixels() { echo "--config.model.image_size=$1"; echo "--config.data.image_size=$1"; }

run_one() {  # run_one NAME
  local kind=${1%%[0-9]*} number after
  number=${1#"$kind"}
  local seed=(--config.seed="$number") tokens=("${merging[@]}")
  mapfile -t after < <(start dense dense)
  case $kind${number:+N} in
    dense)
      train dense folder_policy "${pretrained[@]}" "$(phases dense)" ;;
    pxN)
      train "$1" folder_policy "${pretrained[@]}" "${tuned[@]}" \
          $(pixels "$number") --config.dense.steps=500 ;;
    merged)
      train merged folder_policy "${after[@]}" "${tuned[@]}" "${merging[@]}" \
          --config.dense.steps=250 ;;
    exitsN|merged_exitsN|small_exitsN)
      [[ $kind == merged_exits ]] || tokens=("${no_merging[@]}")
      if [[ $kind == small_exits ]]; then
        mapfile -t after < <(start px160 dense)
        tokens+=($(pixels 160))
      fi
      train "$1" folder_exits "${after[@]}" "${seed[@]}" "${tokens[@]}" \
          "$(phases classifier_wise exits)" ;;
    small_dense)
      mapfile -t after < <(start px160 dense)
      train small_dense folder_policy "${after[@]}" $(pixels 160) \
          "$(phases dense)" ;;
    small_headsN)
      mapfile -t after < <(start px160 dense)
      train "$1" folder_exits "${after[@]}" "${seed[@]}" "${no_merging[@]}" \
          $(pixels 160) "$(phases classifier_wise)" "${views[@]}" \
          --config.classifier_wise.views=4 --config.classifier_wise.steps=2000 \
          --config.classifier_wise.distill=0.5 ;;
    policyN|merged_policyN|small_policyN)
      [[ $kind == merged_policy ]] || tokens=("${no_merging[@]}")
      local joint=350
      case $kind in
        merged_policy) joint=150 ;;
        small_policy)
          mapfile -t after < <(start small_dense dense)
          tokens+=($(pixels 160)) ;;
      esac
      train "$1" folder_policy "${after[@]}" "${seed[@]}" "${tokens[@]}" \
          "$(phases warm_start policy joint)" --config.joint.steps=$joint ;;
    everythingN|small_everythingN)
      mapfile -t after < <(start "merged_policy$number" joint)
      if [[ $kind == small_everything ]]; then
        mapfile -t after < <(start "small_policy$number" joint)
        tokens=("${no_merging[@]}" $(pixels 160))
      fi
      train "$1" folder_exits "${after[@]}" "${seed[@]}" "${tokens[@]}" \
          "$(phases classifier_wise)" --config.exits.policy=True "${views[@]}" \
          --config.classifier_wise.steps=1000 ;;
    agree_exitsN|agree_policyN)
      [[ -e $dir/labels.json ]] || "$python" -m adavit_jax.inference.label_images \
          --weights="$weights" --model=vit_tiny_patch16_224 --data_dir="$images" \
          --output="$dir/labels.json"
      local labels=(--config.data.labels="$dir/labels.json")
      if [[ $kind == agree_exits ]]; then
        train "$1" folder_exits "${pretrained[@]}" "${seed[@]}" "${labels[@]}" \
            "${no_merging[@]}" "$(phases classifier_wise)" "${views[@]}" \
            --config.classifier_wise.steps=4000 --config.classifier_wise.distill=1
      else
        train "$1" folder_policy "${pretrained[@]}" "${seed[@]}" "${labels[@]}" \
            "$(phases warm_start policy)"
      fi ;;
  esac
}

if (( $# == 0 )); then
  set -- dense px160 small_dense
  for seed in 0 1 2; do
    set -- "$@" {exits,merged_exits,small_exits,policy,merged_policy,everything}$seed
    set -- "$@" small_{heads,policy,everything}$seed
    (( seed )) || set -- "$@" px128 px224 merged agree_exits0 agree_policy0
  done
fi
for run in "$@"; do
  [[ $run =~ ^(dense|small_dense|merged|px[0-9]+|(((merged|small)_)?(exits|policy)|small_heads|(small_)?everything|agree_(exits|policy))[0-9]+)$ ]] ||
      usage "there is no run '$run'"
done
for run in "$@"; do
  run_one "$run"
done
