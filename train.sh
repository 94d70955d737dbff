#!/bin/sh
# Train HDMNet: sh train.sh EXP DATASET GPUS [KEY VALUE ...], e.g. sh train.sh split0 coco 4
# NET=vgg in front chooses the backbone. Trains the base learner first where there is none yet.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
read_arguments train.sh "$@"
shift 3
launch train_base.py "$@" --if-missing || exit
launch train.py "$@"
