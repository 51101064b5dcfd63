#!/bin/sh
# Prepare AliProducts for training: sh ./dataset/get_dataset_AiProducts.sh [DIR]
# DIR holds the downloaded files (archives, or unpacked), default: dataset/AiProducts. Without data it prints the steps.
set -eu
repository=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$repository/tools/get_dataset.py" AiProducts "$@"
