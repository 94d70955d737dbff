#!/bin/sh
# Everything once, on the CPU if need be: install, draw the demo dataset, train both stages, test.
# Steps that are done are skipped, and an interrupted one continues.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
prepare_environment requirements.txt
PYTHON=$python
export PYTHON
"$python" -m util.demo_data --out data/demo || exit
sh train.sh split0 demo 1 || exit
sh test.sh split0 demo 1 baselines True --if-missing || exit
sh test.sh split0 demo 1 shot 5 --if-missing || exit
run=exp/demo/HDMNet/split0/resnet18
cat <<END

Both stages are trained and tested. Look at these pictures, each an episode of the test:
$(ls $run/result/episode-1shot-*.png)
The tables are beside them, and those with five supports in exp/demo/HDMNet/split0_5shot/resnet18/result.

Now find an object of a class that the training has never seen. A box marks it in one picture, and exp/demo/labels/overlay
shows where it is in another:
$python predict.py --weights $run --support data/demo/JPEGImages/val_0024.jpg 98,116,210,209 --query data/demo/JPEGImages/val_0330.jpg --out exp/demo/labels --format overlay

Then do the same with your own pictures (docs/own_pictures.md), or train on them (docs/data.md).
END
