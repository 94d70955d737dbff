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
for shot in $shots; do
    case $shot in
    *[!0-9]* | 0*) fail "SHOTS = $shots: must be whole numbers, 1 or more, with blanks between: SHOTS='1 5'" ;;
    esac
done

exp_dir=exp
key=
for word in "$@"; do
    case $key$word in
    -*) fail "$word: reproduce.sh takes settings alone, KEY VALUE" ;;
    *=*) setting=$key$word key= ;;
    *)
        key=$word=
        continue
        ;;
    esac
    name=${setting%%=*}
    case ${name##*.} in
    exp_dir) exp_dir=${setting#*=} ;;
    split | shot | exp_name) fail "$name: reproduce.sh sets it for each training; SHOTS=1 in front chooses the supports" ;;
    esac
done

# shellcheck disable=SC2086
echo "$dataset, $net: folds $(join $folds), supports $(join $shots). Each needs the training of stage 2 and a test,
and each fold the training of stage 1. A training on real data takes hours to days; its log says when it will be done.
Everything is checked before that:"
# shellcheck disable=SC2086
most=$(printf '%s\n' $shots | sort -n | tail -n 1)
# $preset is words without blanks.
# shellcheck disable=SC2086
"$python" -m util.verify --config "$config" --opts $preset "$@" shot "$most" --processes "$gpus" || exit
for fold in $folds; do
    for shot in $shots; do
        printf '\n== fold %s, supports: %s\n' "$fold" "$shot"
        sh train.sh "split$fold" "$dataset" "$gpus" "$@" shot "$shot" || exit
        sh test.sh "split$fold" "$dataset" "$gpus" "$@" shot "$shot" --if-missing || exit
    done
done
printf '\n'
"$python" -m util.report "$exp_dir/$dataset"
