#!/bin/sh
# Install what the tests need, check style and types, and run the tests:
#     sh run_tests.sh [--quick | --oldest | --faults] [PYTEST ARGUMENT ...]
# --quick runs what depends most on the versions of Python and the packages, in about three minutes: the
# published model's numbers, settings, checkpoints, lists and episodes. -m "not slow" runs the quick tests
# of everything, in about one.
# --oldest runs the same as --quick with the oldest versions that the requirements allow, in the
# environment .venv-oldest of Python 3.10; BASE=… in front names another Python.
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
if [ "${1:-}" = --oldest ]; then
    shift
    base=${BASE:-python3.10}
    "$base" -m venv --clear .venv-oldest || fail "$base cannot make .venv-oldest"
    oldest=.venv-oldest/bin/python
    "$oldest" -m pip install --quiet uv
    "$oldest" -m uv pip install --quiet --python "$oldest" --resolution lowest-direct \
        --build-constraint "$constraints" -r requirements.txt -r requirements-dev.txt || exit
    PYTHON=$oldest exec sh run_tests.sh --quick "$@"
fi
prepare_environment requirements.txt requirements-dev.txt
case ${1:-} in
--quick)
    shift
    set -- tests/model/test_golden.py tests/model/test_mm.py tests/util/config \
        tests/util/checkpoints tests/util/data "$@"
    ;;
'' | --faults)
    "$python" -m ruff check --quiet && "$python" -m ruff format --check --quiet &&
        "$python" -m mypy || exit
    ;;
esac
# A thread each: two processes of tests on the cores of a small machine.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
# GPUs are hidden: what these tests expect does not depend on the machine.
CUDA_VISIBLE_DEVICES='' "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || exit
# Then the tests of CUDA, unless some tests were asked for; without a GPU they say that they skip.
[ $# -gt 0 ] || exec "$python" -m pytest -q -rs tests/test_cuda.py
