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
cat <<'END'

dataset                   data/demo
base learner              exp/demo/PSPNet/split0/resnet18
HDMNet                    exp/demo/HDMNet/split0/resnet18
1-shot results, pictures  exp/demo/HDMNet/split0/resnet18/result
5-shot results, pictures  exp/demo/HDMNet/split0_5shot/resnet18/result
END
