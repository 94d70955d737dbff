#!/bin/sh
# Install what the tests need and run them: sh run_tests.sh [--faults] [PYTEST ARGUMENT ...]
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
prepare_environment requirements.txt requirements-dev.txt
# A thread each: two processes of tests on the cores of a small machine.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
