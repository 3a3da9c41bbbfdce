#!/usr/bin/env bash
# Fetch the data sets that a paper's preset needs, run its pipeline, name its report.
# Usage: tools/reproduce.sh PAPER [PRESET]      (called by `make reproduce`, which has made .venv and checked the name)
set -euo pipefail
cd "$(dirname "$0")/.."

paper=$1 preset=${2:-}
# DVC starts stages as `python -m ...`: that has to be the environment's Python.
export PATH=$PWD/.venv/bin:$PATH DVC_NO_ANALYTICS=1

sets=$(python -m shared.data.needed "$paper" ${preset:+"$preset"})
# Word splitting is meant: one argument a set.
[[ -z $sets ]] || python -m shared.data.fetch $sets

if [[ -z $preset ]]; then
    dvc repro "papers/$paper"
else
    git var GIT_AUTHOR_IDENT >/dev/null 2>&1 || {
        echo "error: DVC keeps an experiment as a commit and git does not know you; git config --global user.name NAME; git config --global user.email MAIL" >&2
        exit 1
    }
    dvc exp run -S "papers/$paper/params.yaml:preset=$preset" "papers/$paper"
fi
echo "the report: reports/$paper/README.md"
