#!/bin/sh
# Train the base learner (stage 1): sh train_base.sh EXP DATASET GPUS [KEY VALUE ...]
# NET=vgg in front chooses the backbone.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
read_arguments train_base.sh "$@"
shift 3
launch train_base.py "$@"
