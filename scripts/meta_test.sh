#!/usr/bin/env bash
# Meta-test every run on every task and print one table (also as Markdown and CSV).
#
#   scripts/meta_test.sh RUN... [ways=5,20] [shots=1,5] [episodes=1000] [out=FOLDER] [any override of fsl eval]
#
# RUN is a run folder, a sweep folder (all its jobs) or a quoted glob. A failed test has a row with the reason;
# the exit status is 1 if any test failed, 2 if none could be started.
#
#   scripts/meta_test.sh outputs/train/2026-* ways=5,20 shots=1,5
#   scripts/meta_test.sh outputs/sweep/2026-11-21_10-00-00 shots=1 episodes=500 algo.batch_norm=inductive
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fsl=${FSL:-$(PATH="$here/.venv/bin:$PATH" command -v fsl)} || { echo "error: fsl is not installed (run: make setup)" >&2; exit 2; }
python=$(dirname "$fsl")/python
[ -x "$python" ] || python=$(sed -n '1s/^#! *//p' "$fsl") # in a user installation, python is in another folder

ways=5 shots=1 episodes=1000 out=outputs/meta_test/$(date +%Y-%m-%d_%H-%M-%S)
runs=() overrides=()
add_run() { # add a run folder, or all jobs of a sweep
  local job jobs=()
  while IFS= read -r job; do jobs+=("$job"); done < <(find "$1" -mindepth 1 -maxdepth 1 -type d -name '[0-9]*' 2>/dev/null | sort -V)
  if [ -e "$1/config.yaml" ] || [ ${#jobs[@]} -eq 0 ]; then runs+=("$1"); else runs+=("${jobs[@]}"); fi
}
for word in "$@"; do
  case $word in --*=*) word=${word#--} ;; esac # as sweep agents write key=value
  case $word in
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    ways=* | task.ways=*) ways=${word#*=} ;;
    shots=* | task.shots=*) shots=${word#*=} ;;
    episodes=* | eval.episodes=*) episodes=${word#*=} ;;
    out=*) out=${word#*=} ;;
    *)
      if [ -e "$word" ]; then
        add_run "$word"
      elif compgen -G "$word" >/dev/null; then # a quoted glob
        while IFS= read -r run; do add_run "$run"; done < <(compgen -G "$word" | sort -V)
      elif [[ $word == *=* ]]; then
        overrides+=("$word")
      else
        add_run "$word" # it does not exist: its row will report the error
      fi ;;
  esac
done
if [ ${#runs[@]} -eq 0 ]; then
  echo "error: which runs? (scripts/meta_test.sh outputs/train/FOLDER ways=5,20 shots=1,5)" >&2
  exit 2
fi
if [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
  echo "error: $out: is not empty: choose another out=" >&2
  exit 2
fi
mkdir -p "$out" || exit 2
# fsl handles the signal and exits by itself, after which bash would continue
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

number=0 rows=()
for run in "${runs[@]}"; do
  for way in ${ways//,/ }; do
    for shot in ${shots//,/ }; do
      folder=$out/$number
      echo "== $run  $way-way $shot-shot"
      if ! "$fsl" eval run="$run" task.ways="$way" task.shots="$shot" eval.episodes="$episodes" \
        ${overrides[@]+"${overrides[@]}"} hydra.run.dir="${folder//\$\{/\\\$\{}" 2>"$out/stderr"; then
        "$python" -m fsl_cli.results.refused "$folder" "$out/stderr" ways="$way" shots="$shot"
      fi
      cat "$out/stderr" >&2
      rows+=(--row "$run" "$folder")
      number=$((number + 1))
    done
  done
done
rm -f "$out/stderr"
"$python" -m fsl_cli.results.tables "${rows[@]}" --markdown "$out/results.md" --csv "$out/results.csv"
