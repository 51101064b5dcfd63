#!/bin/sh
# Makes AliProducts ready for training: sh ./dataset/get_dataset_AiProducts.sh [DIR]
# DIR holds what you downloaded (archives, or unpacked); by default dataset/AiProducts. Without data it tells the steps.
set -eu
repository=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$repository/tools/get_dataset.py" AiProducts "$@"
