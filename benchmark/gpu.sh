#!/bin/sh
# Check and measure on this machine's GPU: sh benchmark/gpu.sh OUT [--small] [PIECE ...]
#
# Installs nothing. The pieces (default: all) are tests, steps, profile and protocol; each is ended
# after some minutes, so that the others are done whatever happens. --small runs on the CPU, too.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 2
. ./util/shell.sh
[ $# -ge 1 ] || fail "usage: sh benchmark/gpu.sh OUT [--small] [PIECE ...]"
out=$1
shift
small=
if [ "${1:-}" = --small ]; then
    small=--small
    shift
fi
[ $# -gt 0 ] || set -- tests steps profile protocol
mkdir -p "$out" && out=$(cd -- "$out" && pwd) || fail "$out cannot be made"
find_python

# pictures and episodes of the whole test
if [ -n "$small" ]; then
    options="--net resnet18 --size 65 --pictures 6 --runs 2 --episodes 4"
else
    options="--size 473 --pictures 100 --runs 5 --episodes 100"
fi

failed=0
for piece in "$@"; do
    case $piece in
    tests) set -- -m pytest -q --tb=short -p no:cacheprovider -n 4 tests/test_cuda.py ;;
    steps | profile) set -- -m benchmark.gpu "$piece" "$out" $small ;;
    protocol)
        # shellcheck disable=SC2086
        set -- -m benchmark.protocol $options ;;
    *) fail "PIECE = $piece: must be one of tests, steps, profile, protocol" ;;
    esac
    timeout 240 "$python" "$@" >"$out/$piece.txt" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    printf '\n== %s (exit code %s)\n' "$piece" $code
    tail -n 60 "$out/$piece.txt"
done
exit $failed
