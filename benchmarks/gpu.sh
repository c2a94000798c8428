#!/usr/bin/env bash
# Ten minutes on a machine with a GPU: is everything right there, how fast, and how much memory?
#
#   bash benchmarks/gpu.sh                          # EVE-Base on all devices; the table and runs/gpu/table.json
#   bash benchmarks/gpu.sh --batch 128 --only bf16  # one step, with more rows
#   bash benchmarks/gpu.sh --device cpu --small     # the same steps on the smallest sizes, without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu "$@"
