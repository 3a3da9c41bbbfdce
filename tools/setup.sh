#!/usr/bin/env bash
# Make the environment .venv from nothing, or see in a few milliseconds that it is there already.
# Usage: tools/setup.sh [python3.11]      (called by `make setup`)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.installed
log=$venv/install.log

fail() { echo "error: $*" >&2; exit 1; }

wanted=$(cat requirements.txt requirements-dev.txt constraints.txt | sha256sum | cut -d" " -f1)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# The environment may be active in the caller's shell; it must not be taken for the machine's Python.
PATH=:$PATH: PATH=${PATH//:$PWD\/$venv\/bin:/:} PATH=${PATH#:} PATH=${PATH%:}

# The interpreter. It is run, not only looked up: a version manager may hold a name that leads nowhere.
python=${1:-}
if [[ -z $python ]]; then
    for python in python3.11 python3 python /usr/bin/python3.11; do
        [[ $("$python" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null) == "3 11" ]] && break
        python=
    done
    [[ -n $python ]] || fail "Python 3.11 is missing; install it (Debian 12: sudo apt install python3.11 python3-pip)" \
        "or name it: make setup PYTHON=/path/to/python3.11"
fi
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || version=
[[ -n $version ]] || fail "$python does not run as Python: make setup PYTHON=/path/to/python3.11"
[[ $version == 3.11.* ]] || fail "$python is Python $version, but 3.11 is needed: make setup PYTHON=/path/to/python3.11"
pip_version=$("$python" -m pip --version 2>/dev/null | cut -d' ' -f2) ||
    fail "pip is missing for $python; install it (Debian: sudo apt install python3-pip)"
major=${pip_version%%.*} minor=${pip_version#*.} minor=${minor%%.*}
((major > 22 || (major == 22 && minor >= 3))) || fail "pip $pip_version of $python is too old; 22.3 or newer is needed: $python -m pip install --user --upgrade pip"
command -v git >/dev/null || fail "git is missing; install it (Debian: sudo apt install git)"

# The outer pip fills the environment, so that Debian's python3-venv (ensurepip) is not needed.
# An environment without a stamp is the leftover of an interrupted run or of other requirements; pip mends it in place.
if [[ ! -x $venv/bin/python ]] || [[ $("$venv/bin/python" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null) != "3 11" ]]; then
    free_kib=$(df -Pk . | awk 'NR == 2 {print $4}')
    ((free_kib > 3 * 1024 * 1024)) || fail "$((free_kib / 1024)) MiB free in $PWD; the environment needs 3 GiB (8 GiB with a CUDA build of torch)"
    rm -rf "$venv"
    "$python" -m venv --without-pip "$venv" || fail "$python cannot make a virtual environment in $PWD/$venv"
fi
echo "installing the pinned packages into $venv (one to three minutes, once; log: $log)"
if ! "$python" -m pip --python "$venv/bin/python" install --progress-bar off --no-input --disable-pip-version-check \
    -r requirements.txt -r requirements-dev.txt -c constraints.txt >"$log" 2>&1; then
    grep -v '^WARNING: Location' "$log" | grep -E '^(ERROR|error)' | tail -n 5 >&2 || tail -n 5 "$log" >&2
    fail "the installation failed; the whole log is $log. Without a network, point pip to a package mirror (pip config set global.index-url ...)"
fi
echo "$wanted" >"$stamp"
echo "installed: $("$venv/bin/python" -c 'import torch; print("torch", torch.__version__, "with CUDA" if torch.cuda.is_available() else "on the CPU")')"
