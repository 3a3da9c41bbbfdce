#!/usr/bin/env bash
# Resolve requirements.txt and requirements-dev.txt in a new environment and write the versions to constraints.txt.
# Usage: tools/lock.sh [python3.11]      (called by `make lock`; run the tests afterwards)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv --without-pip "$folder"
"$python" -m pip --python "$folder/bin/python" install --quiet --no-input --disable-pip-version-check \
    -r requirements.txt -r requirements-dev.txt
# torch and torchvision are pinned in requirements.txt and bring their own CUDA packages where they need them.
"$python" -m pip --python "$folder/bin/python" freeze --all 2>/dev/null |
    grep -v -i -E '^(pip|torch|torchvision|triton|nvidia-.*|cuda-.*)(==| @)' | sort -f >"$folder/lock"
{ sed -n '/^#/p' constraints.txt; cat "$folder/lock"; } >"$folder/constraints.txt"
cp "$folder/constraints.txt" constraints.txt
git --no-pager diff --stat -- constraints.txt
