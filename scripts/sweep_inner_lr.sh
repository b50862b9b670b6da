#!/usr/bin/env bash
# A hyper-parameter sweep over MAML's inner step size, with three seeds each. Prints one table at the end.
#
#   scripts/sweep_inner_lr.sh [any override of fsl train]
#
#   scripts/sweep_inner_lr.sh dataset=omniglot train.max_minutes=5
#   scripts/sweep_inner_lr.sh algo.inner_lr=0.1,0.4 seed=0 hydra.sweep.dir=outputs/sweep/my_sweep
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
fsl=${FSL:-$(PATH="$here/.venv/bin:$PATH" command -v fsl)} || { echo "error: fsl is not installed (run: make setup)" >&2; exit 2; }

settings=()
default() { # add a default setting unless it is on the command line
  case " $given " in *" ${1%%=*}="* | *" --${1%%=*}="*) ;; *) settings+=("$1") ;; esac
}
given="$*"
default algo=maml
default dataset=glyphs
default train.iterations=500
default algo.inner_lr=0.05,0.1,0.2,0.4,0.8
default seed=0,1,2
exec "$fsl" train -m ${settings[@]+"${settings[@]}"} "$@"
