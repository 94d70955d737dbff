#!/bin/sh
# Check and measure on this machine's GPU: sh benchmark/gpu.sh OUT [--small] [PIECE ...]
#
# Installs nothing. The pieces (default: all) are tests, steps, profile, base and protocol; each is ended
# after LIMIT seconds (240), so that the others are done whatever happens. --small runs on the CPU.
# PUBLISHED=DIR also measures the steps of a copy of the published code, without --small.
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
[ $# -gt 0 ] || set -- tests steps profile base protocol
mkdir -p "$out" && out=$(cd -- "$out" && pwd) || fail "$out cannot be made"
find_python

# Repeats of steps and profile; pictures and episodes of the whole test.
if [ -n "$small" ]; then
    measured="--small --repeats 1"
    whole="--net resnet18 --size 65 --pictures 60 --runs 2 --episodes 8"
    tests=
else
    measured="--repeats 7 ${PUBLISHED:+--published $PUBLISHED}"
    whole="--size 633 --pictures 300 --runs 10 --episodes 60"
    whole="$whole --opts batch_size_val=8 feature_cache_gb=20"
    tests="-n 4"
fi

failed=0
for piece in "$@"; do
    case $piece in
    # shellcheck disable=SC2086
    tests) set -- -m pytest --tb=short -p no:cacheprovider $tests tests/test_cuda.py ;;
    # shellcheck disable=SC2086
    steps | profile) set -- -m benchmark.model "$piece" --out "$out" $measured ;;
    base) set -- -m benchmark.base $small ;;
    # shellcheck disable=SC2086
    protocol) set -- -m benchmark.protocol $whole ;;
    *) fail "PIECE = $piece: must be one of tests, steps, profile, base, protocol" ;;
    esac
    timeout "${LIMIT:-240}" "$python" "$@" >"$out/$piece.log" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    printf '\n== %s (exit code %s), %s\n' "$piece" $code "$out/$piece.log"
    tail -n 60 "$out/$piece.log"
done
exit $failed
