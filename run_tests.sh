#!/bin/sh
# Install what the tests need and run them: sh run_tests.sh [PYTEST ARGUMENT ...]
CDPATH='' cd -- "$(dirname -- "$0")" || exit 2
. ./util/shell.sh
prepare_environment requirements.txt requirements-dev.txt
exec "$python" -m pytest "$@"
