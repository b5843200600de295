#!/usr/bin/env bash
# What only a GPU can tell, in order of worth; each part is bounded in time, and
# its results are written as they come:
#
#   bash benchmarks/gpu.sh [MINUTES] [--out DIR] [--data DIR] [--wheels DIR] [--tiny]
#
#   MINUTES   for all parts together, 8 by default, 0.5 for example is valid
#   --out     the folder of the results, gpu_results by default
#   --data    data_dir of CIFAR-10, as tfds prepared it ($GPU_DATA)
#   --wheels  folder of wheels to install from ($GPU_WHEELS); without it, what is
#             installed is used, and nothing is ever downloaded
#   --tiny    every part but ravit in a tiny form, also on a CPU
#
# The same command with the same folder goes on: finished parts are skipped, and
# training resumes. $PYTHON is the interpreter, python by default. docs/gpu.md says
# what each part measures.
set -uo pipefail
export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

usage() { echo "gpu.sh: $*; see the head of $0" >&2; exit 2; }

minutes=8 out=gpu_results data=${GPU_DATA:-} wheels=${GPU_WHEELS:-} tiny=
while (( $# )); do
  case $1 in
    --out|--data|--wheels)
      [[ -n ${2:-} ]] || usage "$1 needs a folder"
      printf -v "${1#--}" %s "$2"; shift ;;
    --tiny) tiny=1 ;;
    *[!0-9.]*|*.*.*|.) usage "unknown argument '$1'" ;;
    *) minutes=$1 ;;
  esac
  shift
done
for folder in "$data" "$wheels"; do
  [[ -z $folder || -d $folder ]] || usage "there is no folder '$folder'"
done
total=$(awk "BEGIN { print int(60 * $minutes) }")
(( total > 0 )) || usage "MINUTES=$minutes must be a positive number"

mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
[[ -z $data ]] || data=$(cd "$data" && pwd)
[[ -z $wheels ]] || wheels=$(cd "$wheels" && pwd)
cd "$PYTHONPATH"
python=${PYTHON:-python}
# What is compiled or decoded once serves the next call too.
export JAX_COMPILATION_CACHE_DIR="$out/compiled" ADAVIT_CACHE="$out/decoded"

say() { echo "$*" | tee -a "$out/summary.txt"; }
left() { echo $(( total - SECONDS )); }
share() { echo $(( total * $1 / 100 )); }  # seconds of a percentage of all time

# part NAME SECONDS COMMAND...: runs a command for at most so long, and to the
# end of all time at most; its output goes to NAME.txt. A part that has ended
# well is not run again.
part() {
  local name=$1 most=$2 started=$SECONDS status
  shift 2
  [[ -e $out/$name.done ]] && { say "$name: finished before"; return; }
  (( most < $(left) )) || most=$(left)
  (( most > 0 )) || { say "$name: no time left"; return; }
  [[ -e $1 ]] || { say "$name: there is no $1"; return; }
  echo "== $name, at most $most s: $python $*"
  echo "\$ ${XLA_FLAGS:+XLA_FLAGS='$XLA_FLAGS' }python $*" > "$out/$name.txt"
  # A second signal ends what does not stop on the first.
  timeout -k 30 "$most" "$python" "$@" < /dev/null 2>&1 | tee -a "$out/$name.txt"
  status=${PIPESTATUS[0]}
  case $status in
    0) touch "$out/$name.done"; say "$name: finished, $((SECONDS - started)) s" ;;
    124|137) say "$name: cut after $((SECONDS - started)) s; what it has is in $name.txt" ;;
    *) say "$name: failed with status $status, $((SECONDS - started)) s; see $name.txt" ;;
  esac
}

# part_of SECONDS: what is left of a budget that began at $began.
part_of() { local rest=$(( $1 - (SECONDS - began) )); echo $(( rest > 0 ? rest : 0 )); }

if [[ -n $wheels && ! -e $out/venv/installed ]]; then
  extra=cuda
  compgen -G "$wheels/jax_cuda12_plugin*" > /dev/null && extra=cuda12
  compgen -G "$wheels/jax_cuda*" > /dev/null || extra=
  more=()
  for package in torch timm; do
    compgen -G "$wheels/$package-*" > /dev/null && more+=("$package")
  done
  "$python" -m venv --system-site-packages "$out/venv" &&
      "$out/venv/bin/python" -m pip install -q --no-index --find-links "$wheels" \
          "adavit_jax${extra:+[$extra]}" "${more[@]}" &&
      touch "$out/venv/installed" || usage "cannot install from $wheels"
fi
[[ -z $wheels ]] || python=$out/venv/bin/python

say "== $minutes minutes${tiny:+, tiny}"
devices=$("$python" -c 'import jax
print(jax.default_backend(), jax.devices()[0].device_kind, jax.device_count(), "jax", jax.__version__)' 2> "$out/device.txt") ||
    { cat "$out/device.txt" >&2; say "jax does not start, see device.txt"; exit 1; }
nvidia-smi >> "$out/device.txt" 2>&1
echo "$devices" >> "$out/device.txt"
say "device: $devices"
if [[ -z $tiny && $devices != gpu* ]]; then
  say "this is no GPU: install jax for it (README.md), or give --tiny"
  exit 1
fi

models=(vit_small_patch16_224 vit_base_patch16_224) batches=(1 64 256)
dtype=bfloat16 keeps=1.0,0.75,0.5 repeats=5
if [[ -n $tiny ]]; then
  models=(vit_digits_patch2_8) batches=(1 2) dtype=float32 keeps=0.5 repeats=1
fi
first=${models[0]} largest=${batches[-1]}
execution=(benchmarks/execution.py --dtype="$dtype" --repeats="$repeats")

# Dense, cond and compact: 30 % of the time.
began=$SECONDS
for batch in "${batches[@]}"; do
  for model in "${models[@]}"; do
    part "modes_${model}_$batch" "$(part_of "$(share 30)")" "${execution[@]}" \
        --models="$model" --batches="$batch" --modes=cond,compact --keeps="$keeps" \
        --notimm --output="$out/modes_${model}_$batch.json"
  done
done

# Attention: 8 %.
attention=(benchmarks/attention.py --repeats="$repeats")
[[ -n $tiny ]] && attention+=(--batches=2 --tokens=17 --heads=2 --head_dim=8)
part attention "$(share 5)" "${attention[@]}" --output="$out/attention.json"
part attention_gradient "$(share 3)" "${attention[@]}" --gradient \
    --output="$out/attention_gradient.json"

# The trained models of the package: 8 %. The digits need no data.
trained=digits-policy
if [[ -n $data ]]; then
  [[ -n $tiny ]] || trained=cifar10-exits,cifar10-policy
else
  say 'no data: give --data for models of CIFAR-10 and for training'
fi
part trained "$(share 8)" "${execution[@]}" --workdir="$trained" \
    --batches="1,$largest" ${data:+--data_dir="$data"} --output="$out/trained.json"

# Conditionals and loops within CUDA graphs, or launched one by one: 12 %.
began=$SECONDS
for graphs in none all; do
  [[ $graphs == none ]] && kinds= || kinds=+CONDITIONAL,+WHILE
  for batch in 1 "${batches[1]}"; do
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=$kinds" \
        part "graphs_${graphs}_$batch" "$(part_of "$(share 12)")" "${execution[@]}" \
        --models="$first" --batches="$batch" --modes=cond,compact --keeps=0.5 \
        --notimm --output="$out/graphs_${graphs}_$batch.json"
  done
done

# The size of a pass of compact, a guess on GPUs: 6 %.
chunks=16,32,64,128,256
[[ -n $tiny ]] && chunks=1,2
part passes "$(share 6)" "${execution[@]}" --models="$first" --batches="$largest" \
    --modes=compact --keeps=0.5 --chunks="$chunks" --notimm --output="$out/passes.json"

# timm, eager and by torch.compile, which takes long to compile: 10 %.
if "$python" -c 'import torch, timm' 2> /dev/null; then
  began=$SECONDS
  for batch in "${batches[@]}"; do
    for model in "${models[@]}"; do
      XLA_PYTHON_CLIENT_PREALLOCATE=false part "timm_${model}_$batch" \
          "$(part_of "$(share 10)")" "${execution[@]}" --models="$model" \
          --batches="$batch" --modes= --output="$out/timm_${model}_$batch.json"
    done
  done
else
  say 'timm: left out, PyTorch or timm is not installed; nothing else needs them'
fi

# Training, with all time that is left: RAViT's Table I first.
steps=50  # in one program; log_every allows no more
train() {  # train NAME SECONDS CONFIG...: trains and evaluates
  local name=$1 most=$2
  shift 2
  part "$name" "$most" train.py "$@" --workdir="$out/$name"
  [[ ! -e $out/$name.done ]] ||
      part "${name}_eval" "$(left)" eval.py --workdir="$out/$name"
}
if [[ -n $tiny ]]; then
  train policy "$(left)" --config=configs/digits_policy.py --config.dense.steps=2 \
      --config.warm_start.steps=2 --config.policy.steps=2 --config.joint.steps=2 \
      --config.num_search=16 --config.num_value=16
elif [[ -n $data ]]; then
  part ravit "$(( $(left) * 7 / 10 ))" benchmarks/tables.py ravit_cifar10 \
      --schedule=full --rows=1-3,0-4 --seeds=1 --workdir="$out/ravit" \
      --data_dir="$data" --override=steps_per_call="$steps"
  train policy "$(left)" --config=configs/cifar10_policy.py \
      --config.data.data_dir="$data" --config.steps_per_call="$steps"
fi
say "the results are in $out; $SECONDS s"
