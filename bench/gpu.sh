#!/usr/bin/env bash
# Everything that has to be tested and measured on a GPU, in one command; the tables go to bench/results/.
#
#     bench/gpu.sh JOIN_LAKE UNION_LAKE [UNION_QUERIES]
#
# PYTHON is an interpreter that has gpumatch and its extras dev and bench (.venv of `make setup` and `make bench` by default).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6p' "$0"; exit 2; }
cd "$(dirname "$0")/.."
join=$1 union=$2 queries=${3:-3095}
python=${PYTHON:-$PWD/.venv/bin/python}
export HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1 PYTHONPATH=bench
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no GPU here: torch.cuda.is_available() is False")'
"$python" -m gpumatch doctor
"$python" -m pytest -q tests/kernels tests/test_backend.py tests/test_encoder.py tests/test_packaging.py
"$python" bench/encoding.py --lake "$union" --device cuda
"$python" bench/headline.py --join "$join" --union "$union" --union-queries "$queries" --cold --baseline --runs 3
"$python" bench/kernels.py
"$python" bench/readme.py
