#!/bin/sh
# Test HDMNet on the held-out classes: sh test.sh EXP DATASET GPUS [KEY VALUE ...]
# NET=vgg in front chooses the backbone.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
read_arguments test.sh "$@"
shift 3
launch test.py "$@"
