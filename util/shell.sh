# What the shell scripts share. They source this file from the root of the repository.
#
# PYTHON=... in front of a script names the interpreter to use, with nothing installed into it;
# otherwise it is that of the active virtual environment, of .venv, or python3.

constraints=util/build-constraints.txt

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# join WORD...: "a, b, c"
join() {
    joined=
    for word in "$@"; do
        joined=${joined:+$joined, }$word
    done
    printf '%s' "$joined"
}

# stems SUFFIX FILE...: the files' names without folder and suffix
stems() {
    suffix=$1
    shift
    for file in "$@"; do
        [ -f "$file" ] || continue
        name=${file##*/}
        printf '%s\n' "${name%"$suffix"}"
    done
}

tested='3.10 to 3.13'
at_least_3_10='import sys; sys.exit(sys.version_info < (3, 10))'
not_newer_than_tested='import sys; sys.exit(sys.version_info >= (3, 14))'

# check_python: whether $python can be used
check_python() {
    "$python" -c 'pass' 2>/dev/null || fail "$python does not run; is its environment complete?"
    "$python" -c "$at_least_3_10" ||
        fail "$python is $("$python" --version 2>&1); 3.10 or newer is needed (tested: $tested)"
}

# find_python: sets $python for a script that trains or tests
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
    elif [ -n "${VIRTUAL_ENV:-}" ]; then
        python=$VIRTUAL_ENV/bin/python
    elif [ -x .venv/bin/python ]; then
        python=.venv/bin/python
    else
        python=python3
    fi
    check_python
    "$python" -c 'import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "timm", "cv2", "mmcv", "pydantic", "yaml"))))' ||
        fail "$python lacks packages of requirements.txt; README.md says how to install them, or run: sh demo.sh"
}

# find_base_python: sets $base, an interpreter that can make a virtual environment. The tested
# versions come first; the packages may exist for newer ones too.
find_base_python() {
    without_venv=
    for condition in "$not_newer_than_tested" 'pass'; do
        for base in python3 python3.13 python3.12 python3.11 python3.10 python python3.14; do
            "$base" -c "$at_least_3_10" >/dev/null 2>&1 || continue
            "$base" -c "$condition" || continue
            "$base" -c 'import venv, ensurepip' 2>/dev/null && return
            without_venv=${without_venv:-$base}
        done
    done
    [ -z "$without_venv" ] ||
        fail "$without_venv has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
    found=$(python3 --version 2>/dev/null) || found=$(python --version 2>&1) || found=none
    fail "Python 3.10 or newer is needed (tested: $tested; found: $found)"
}

# prepare_environment REQUIREMENTS...: sets $python, with everything in these files installed
prepare_environment() {
    if [ -n "${PYTHON:-}" ]; then
        find_python
        return
    fi
    environment=${VIRTUAL_ENV:-.venv}
    python=$environment/bin/python
    if [ -z "${VIRTUAL_ENV:-}" ] && ! "$python" -c 'pass' 2>/dev/null; then
        find_base_python
        said=$("$base" -m venv --clear .venv 2>&1) ||
            fail "$base cannot make .venv: $(printf '%s\n' "$said" | tail -n 1)"
    fi
    check_python
    # An interrupted start leaves an environment without pip.
    "$python" -c 'import pip' 2>/dev/null || "$python" -m ensurepip >/dev/null 2>&1 ||
        fail "$environment has no pip; install it there, or remove the folder"
    for requirements in "$@"; do
        install_once
    done
}

# install_once: pip install $requirements into $environment, unless that was done before
install_once() {
    stamp=$environment/.hdmnet-$requirements
    sum=$(cat "$requirements" "$constraints" | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ]; then
        return
    fi
    log=$environment/hdmnet-pip-errors.log
    echo "Installing $requirements into $environment; what pip says is in $environment/hdmnet-pip.log"
    if [ "$requirements" = requirements.txt ] && [ "$(uname 2>/dev/null)" = Linux ] && ! "$python" -c 'import torch' 2>/dev/null; then
        echo "This is about 6 GB, most of it CUDA libraries, and takes some minutes. Without a GPU, 2 GB suffice if you"
        echo "install torch first: $python -m pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    fi
    # A relative path, since pip splits these variables at blanks.
    {
        PIP_CONSTRAINT="${PIP_CONSTRAINT:+$PIP_CONSTRAINT }$constraints" \
            PIP_BUILD_CONSTRAINT="${PIP_BUILD_CONSTRAINT:+$PIP_BUILD_CONSTRAINT }$constraints" \
            "$python" -m pip install --disable-pip-version-check --progress-bar off -r "$requirements" 2>"$log"
        printf '\nexit code %s\n' $?
    } | show_pip 3>"$environment/hdmnet-pip.log" ||
        fail "pip could not install $requirements for $("$python" --version 2>&1) (tested: $tested): $(pip_reason) (all of it: $log)"
    printf '%s\n' "$sum" >"$stamp"
}

# show_pip: writes what pip says, its input, to file descriptor 3. On a terminal it shows the last line, and
# elsewhere the large downloads and the installation. Returns the exit code of pip, the last line of the input.
show_pip() {
    code=1
    while IFS= read -r line; do
        case $line in
        'exit code '*) code=${line#exit code } ;;
        *) printf '%s\n' "$line" >&3 ;;
        esac
        if [ -t 1 ]; then
            printf '\r\033[K%.78s' "$line"
            continue
        fi
        case $line in
        *' Downloading '*[0-9][0-9][0-9].[0-9]' MB)') printf '%s\n' "$line" ;;
        'Installing collected packages'*) echo "  Installing the packages, which takes a minute or more" ;;
        esac
    done
    [ ! -t 1 ] || printf '\r\033[K'
    return "$code"
}

pip_reason() {
    if grep -q 'Retrying (' "$log"; then
        echo 'the package index cannot be reached; is there a network?'
    else
        grep -i '^ *error' "$log" | head -n 1
    fi
}

# read_arguments SCRIPT EXP DATASET GPUS ...: sets $config, $preset, $gpus and $python
read_arguments() {
    datasets=$(stems .yaml config/datasets/*.yaml)
    # One word a line, and names hold no blanks.
    # shellcheck disable=SC2086
    datasets=$(join $datasets)
    [ $# -ge 4 ] ||
        fail "usage: sh $1 EXP DATASET GPUS [KEY VALUE ...], with EXP split0..split3, DATASET one of $datasets, GPUS 1 or more; for instance: sh $1 split0 pascal 1"
    exp=$2
    dataset=$3
    gpus=$4
    case $dataset in
    demo) net=${NET:-resnet18} ;;
    *) net=${NET:-resnet50} ;;
    esac
    # The other files in this folder hold the settings of datasets.
    # shellcheck disable=SC2046
    nets=$(join $(stems .yaml $(grep -lE '^ +(backbone|layers|vgg):' config/base/*.yaml)))
    case ", $nets, |$net" in
    *", $net, "* | *"|timm:"*) ;;
    *) fail "NET = $net: must be one of $nets or timm:MODEL" ;;
    esac
    case $gpus in
    '' | *[!0-9]* | 0*) fail "GPUS = $gpus: must be a whole number, 1 or more" ;;
    esac
    find_config
    case $exp in
    split*) ;;
    *) preset="$preset exp_name $exp" ;;
    esac
    find_python
}

# parts SED: the different parts that SED leaves of the lines of $known
parts() {
    printf '%s\n' "$known" | sed "$1" | sort -u
}

# find_config: the file of this experiment; without one that of another backbone, with this one set;
# for a dataset that has none, its description alone
find_config() {
    config=config/$dataset/${dataset}_${exp}_$net.yaml
    preset=
    [ ! -f "$config" ] || return 0
    known=$(stems .yaml "config/$dataset/${dataset}_"*.yaml | sed "s/^${dataset}_//")
    for config in "config/$dataset/${dataset}_${exp}_resnet"*.yaml; do
        preset="backbone $net"
        [ ! -f "$config" ] || return 0
    done
    if [ -n "$known" ]; then
        # shellcheck disable=SC2046
        fail "EXP = $exp: there is no config/$dataset/${dataset}_${exp}_NET.yaml; EXP may be $(join $(parts 's/_[^_]*$//'))"
    fi
    [ -f "config/datasets/$dataset.yaml" ] ||
        fail "DATASET = $dataset: must be one of $datasets (a new one: write config/datasets/$dataset.yaml)"
    fold=${exp#split}
    case $fold in
    "$exp" | '' | *[!0-9]*) fail "EXP = $exp: must be split0, split1, ..." ;;
    esac
    config=config/base/$net.yaml
    preset="data_set $dataset split $fold"
    [ -f "$config" ] || config=config/base/resnet50.yaml preset="backbone $net $preset"
}

# launch SCRIPT [KEY VALUE ...] [--FLAG ...]: run a Python script on $gpus processes
launch() {
    script=$1
    shift
    # $preset is words without blanks.
    # shellcheck disable=SC2086
    if [ "$gpus" -eq 1 ] && [ "${NNODES:-${SLURM_STEP_NUM_NODES:-1}}" = 1 ] && [ "${MAX_RESTARTS:-0}" = 0 ]; then
        set -- "$script" --config "$config" --opts $preset "$@"
    else
        set -- -m util.launch "$gpus" "$script" --config "$config" --opts $preset "$@"
    fi
    "$python" "$@"
}
