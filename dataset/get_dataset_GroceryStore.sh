#!/bin/sh
# Prepare the Grocery Store Dataset for training: sh ./dataset/get_dataset_GroceryStore.sh [DIR]
# DIR is a checkout, its dataset folder, or an archive of it; without DIR the public repository is cloned.
set -eu
repository=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$repository/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$repository/tools/get_dataset.py" GroceryStore "$@"
