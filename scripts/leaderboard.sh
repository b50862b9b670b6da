#!/usr/bin/env bash
# Train every method for the same wall-clock time, test all of them on the same episodes, and print one table.
#
#   scripts/leaderboard.sh [--jobs N] [methods=a,b] [minutes=10] [episodes=1000] [out=FOLDER] [any override of fsl train]
#
# A method is a name from `fsl ls algo`, with its own overrides after +: methods=maml,maml+algo.inner_steps=5,protonet.
# N methods run in parallel and share the cores. Repeat an interrupted command to continue it: finished rows are kept,
# an interrupted run resumes from its last checkpoint. The default task is Omniglot, 5-way 1-shot.
#
#   scripts/leaderboard.sh --jobs 2
#   scripts/leaderboard.sh methods=maml,protonet minutes=2 dataset=glyphs task.shots=5 out=outputs/leaderboard/glyphs
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fsl=${FSL:-$(PATH="$here/.venv/bin:$PATH" command -v fsl)} || { echo "error: fsl is not installed (run: make setup)" >&2; exit 2; }
python=$(dirname "$fsl")/python
[ -x "$python" ] || python=$(sed -n '1s/^#! *//p' "$fsl") # in a user installation, python is in another folder

jobs=1 minutes=10 episodes=1000 out='' methods='' overrides=()
while [ $# -gt 0 ]; do
  case $1 in --*=*) [ "${1%%=*}" = --jobs ] || set -- "${1#--}" "${@:2}" ;; esac # as sweep agents write key=value
  case $1 in
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --jobs) jobs=${2-}; shift ;;
    --jobs=*) jobs=${1#*=} ;;
    minutes=*) minutes=${1#*=} ;;
    episodes=*) episodes=${1#*=} ;;
    out=*) out=${1#*=} ;;
    methods=*) methods=${1#*=} ;;
    *=*) overrides+=("$1") ;;
    *) echo "error: $1: what is it? (scripts/leaderboard.sh --help)" >&2; exit 2 ;;
  esac
  shift
done
case $jobs in '' | *[!0-9]* | 0) echo "error: --jobs: $jobs is not valid: use a number of methods at a time" >&2; exit 2 ;; esac

words=()
unless() { # set words to those behind --, without the ones whose key is in the overrides before it
  local given=' '
  while [ "$1" != -- ]; do given+="${1%%=*}= "; shift; done
  shift
  words=()
  for word in "$@"; do case $given in *" ${word%%=*}= "*) ;; *) words+=("$word") ;; esac; done
}
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
threads=$((cores / jobs > 0 ? cores / jobs : 1))
common=("train.max_minutes=$minutes" train.iterations=1000000000 train.schedule_by=minutes "eval.episodes=$episodes")
unless ${overrides[@]+"${overrides[@]}"} -- "${common[@]}" "hardware.threads=$threads" dataset=omniglot
common=(${words[@]+"${words[@]}"} ${overrides[@]+"${overrides[@]}"})
if [ -z "$methods" ]; then
  # nearest does not learn: one iteration is enough.
  methods=$("$fsl" ls algo | cut -f1 | sed -n 's/^algo=//p' | sed '/^nearest$/d' | paste -sd, -)
  [ -n "$methods" ] || { echo "error: fsl ls algo names no method (run: fsl doctor)" >&2; exit 2; }
  methods+=,nearest+train.iterations=1,nearest+algo.space=network+train.iterations=1
fi
every=() part=''
IFS=, read -ra parts <<<"$methods"
for word in "${parts[@]}"; do # a comma inside brackets is part of a list: test_inner_steps=[0,1]
  part+=${part:+,}$word
  opened=${part//[^\[]/} closed=${part//[^\]]/}
  [ ${#opened} -gt ${#closed} ] || { every+=("$part"); part=''; }
done
[ -z "$part" ] || { echo "error: methods: $part is not valid: it has no closing bracket" >&2; exit 2; }
name=$(printf '%s\n' "${common[@]}" | sed -n 's/^dataset=//p' | tail -1)
out=${out:-outputs/leaderboard/${name}_${minutes}min}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)

# Rows with different settings are not comparable.
if [ -e "$out/settings" ] && ! diff -q "$out/settings" <(printf '%s\n' "${common[@]}") >/dev/null; then
  echo "error: $out: holds rows with other settings ($(paste -sd' ' - <"$out/settings")): use another out=" >&2
  exit 2
fi
printf '%s\n' "${common[@]}" >"$out/settings"

row_folder() { printf '%s/%s' "$out" "$(printf '%s' "$1" | tr -c 'A-Za-z0-9._-' _)"; }
is_done() { grep -q '"state": "done"' "$1/status.json" 2>/dev/null; }
train() { # train one method, given as its name and its own overrides, in its folder
  local folder own
  folder=$(row_folder "$1")
  IFS=+ read -ra own <<<"$1"
  unless "${own[@]}" -- "${common[@]}"
  trap 'kill $! 2>/dev/null; wait; exit 143' TERM HUP # otherwise training would continue in the background
  "$fsl" train "algo=${own[0]}" ${words[@]+"${words[@]}"} "${own[@]:1}" "hydra.run.dir=${folder//\$\{/\\\$\{}" resume=auto >"$folder.log" 2>&1 &
  wait $! || { echo "$1: $(grep '^error: ' "$folder.log" | tail -1 || true) (see $folder.log)" >&2; "$python" -m fsl_cli.results.refused "$folder" "$folder.log"; }
  echo "== $1  $(grep '^test ' "$folder.log" | tail -1)"
}
stop() { # end all trainings, which save a checkpoint, and exit as the signal says
  kill $(jobs -p) 2>/dev/null
  wait
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

rows=()
for method in "${every[@]}"; do
  folder=$(row_folder "$method")
  rows+=(--row "$method" "$folder")
  if is_done "$folder"; then
    echo "== $method  kept"
    continue
  fi
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do sleep 1; done
  echo "== $method  training for $minutes min"
  train "$method" &
done
wait
"$python" -m fsl_cli.results.tables "${rows[@]}" --best-first --markdown "$out/results.md" --csv "$out/results.csv"
