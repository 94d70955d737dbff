#!/bin/sh
# The paper's table: train and test all folds of a dataset, with one and five supports:
#     sh reproduce.sh DATASET GPUS [KEY VALUE ...], e.g. sh reproduce.sh pascal 4
# NET=vgg in front chooses the backbone, and SHOTS=1 leaves five supports out. Steps that are done are
# skipped, and an interrupted one continues.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
[ $# -ge 2 ] || fail "usage: sh reproduce.sh DATASET GPUS [KEY VALUE ...], for instance: sh reproduce.sh pascal 4"
# Checks the words before anything starts.
read_arguments reproduce.sh split0 "$@"
shift 2
PYTHON=$python
export PYTHON
# One word a line, and names hold no blanks.
# shellcheck disable=SC2046,SC2086
folds=$(printf '%s\n' $(stems .yaml config/$dataset/${dataset}_split*.yaml) |
    sed "s/^${dataset}_split\([0-9]*\)_.*/\1/" | sort -nu)
shots=${SHOTS:-1 5}

exp_dir=exp
name=
for word in "$@"; do
    case $word in
    exp_dir=*) exp_dir=${word#exp_dir=} ;;
    *) [ "$name" != exp_dir ] || exp_dir=$word ;;
    esac
    name=$word
done

# shellcheck disable=SC2086
echo "$dataset, $net: folds $(join $folds), supports $(join $shots). Each needs the training of stage 2 and a test,
and each fold the training of stage 1. A training on real data takes hours to days; its log says when it will be done."
for fold in $folds; do
    for shot in $shots; do
        printf '\n== fold %s, supports: %s\n' "$fold" "$shot"
        sh train.sh "split$fold" "$dataset" "$gpus" "$@" shot "$shot" || exit
        sh test.sh "split$fold" "$dataset" "$gpus" "$@" shot "$shot" --if-missing || exit
    done
done
printf '\n'
"$python" -m util.report "$exp_dir/$dataset"
