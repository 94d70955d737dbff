"""The shell scripts, run by dash (or sh) with stand-ins for Python that record their arguments."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.paths import ROOT

SHELL = shutil.which("dash") or "sh"
SCRIPTS = ("train.sh", "train_base.sh", "test.sh")
DATASETS = ("coco", "demo", "pascal")  # those that come with the repository
SETTINGS = (
    *("NET", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("MAX_RESTARTS", "VIRTUAL_ENV", "SHOTS", "SLURM_STEP_NUM_NODES"),
)

STAND_IN = """#!/bin/sh
[ "$1" = -c ] && exit 0
{ printf 'call'; printf ' <%s>' "$@"; echo; } >>"$CALLS"
case $1 in "$FAILING") exit 7 ;; esac
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of the scripts and configurations in a folder with blanks, with its own `python`.

    Datasets that the user added to config/ stay out of it.
    """
    root = tmp_path / "a repository  with blanks"
    (root / "util").mkdir(parents=True)
    for name in (*SCRIPTS, "reproduce.sh", "util/shell.sh", "util/build-constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for name in ("base", *DATASETS):
        shutil.copytree(ROOT / "config" / name, root / "config" / name)
    (root / "config/datasets").mkdir()
    for name in DATASETS:
        description = f"config/datasets/{name}.yaml"
        shutil.copy(ROOT / description, root / description)
    python = root / "stand in"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return root


def run(root, script, *words, cwd="/", failing="", stdout=subprocess.PIPE, **settings):
    """Run a script; returns the finished process and the calls of Python it made."""
    calls = root / "calls"
    calls.unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    env = clean | {"PYTHON": str(root / "stand in"), "CALLS": str(calls), "FAILING": failing}
    done = subprocess.run(
        [SHELL, str(root / script), *words],
        cwd=cwd,
        env=env | settings,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


def call(*words):
    return "call" + "".join(f" <{word}>" for word in words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_too_few_arguments_are_one_line_with_the_usage(repository, script):
    done, calls = run(repository, script, "split0")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(f"error: usage: sh {script} EXP DATASET GPUS")
    assert "pascal" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "settings", "text"),
    [
        (("split9", "pascal", "1"), {}, "EXP = split9: there is no config/pascal/"),
        (("split9", "pascal", "1"), {}, "EXP may be split0, split1, split2, split3\n"),
        (("split0", "pasca", "1"), {}, "DATASET = pasca: must be one of coco, demo, pascal"),
        (("split0", "pascal", "0"), {}, "GPUS = 0: must be a whole number"),
        (("split0", "pascal", "two"), {}, "GPUS = two: must be a whole number"),
        (("split0", "pascal", "-1"), {}, "GPUS = -1: must be a whole number"),
        (("split0", "pascal", ""), {}, "GPUS = : must be a whole number"),
        (("split0", "pascal", "1"), {"NET": "vgg19"}, "NET = vgg19: must be one of "),
        (("split0", "pascal", "1"), {"NET": "pascal"}, "NET = pascal: must be one of "),
        (("split0", "pascal", "1"), {"PYTHON": "no such python"}, "no such python does not run"),
    ],
)
def test_wrong_arguments_are_one_clear_line(repository, words, settings, text):
    done, calls = run(repository, "train.sh", *words, **settings)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert text in done.stderr
    assert calls == []


OPTIONS = ("--config", "config/{0}/{0}_split{1}_{2}.yaml", "--opts")


def options(dataset, split, net, *opts):
    return (*(word.format(dataset, split, net) for word in OPTIONS), *opts)


COCO = ("train_base.py", *options("coco", 0, "resnet50"))
LAUNCHER = ("-m", "util.launch")


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        (
            ("test.sh", "split2", "pascal", "1", "weight", "a b/*.pth", "x="),
            {},
            [("test.py", *options("pascal", 2, "resnet50", "weight", "a b/*.pth", "x="))],
        ),
        (  # The base learner comes first, where it is missing.
            ("train.sh", "split1", "demo", "1", "epochs", "1"),
            {"NET": "vgg"},
            [
                ("train_base.py", *options("demo", 1, "vgg", "epochs", "1"), "--if-missing"),
                ("train.py", *options("demo", 1, "vgg", "epochs", "1")),
            ],
        ),
        # The demo has a default backbone of its own.
        (("test.sh", "split0", "demo", "1"), {}, [("test.py", *options("demo", 0, "resnet18"))]),
        # Several processes and nodes, and restarts, go through the launcher.
        (("train_base.sh", "split0", "coco", "4"), {}, [(*LAUNCHER, "4", *COCO)]),
        (("train_base.sh", "split0", "coco", "1"), {"NNODES": "2"}, [(*LAUNCHER, "1", *COCO)]),
        (
            ("train_base.sh", "split0", "coco", "1"),
            {"SLURM_STEP_NUM_NODES": "2"},
            [(*LAUNCHER, "1", *COCO)],
        ),
        (
            ("train_base.sh", "split0", "coco", "1"),
            {"MAX_RESTARTS": "3"},
            [(*LAUNCHER, "1", *COCO)],
        ),
        (("train_base.sh", "split0", "coco", "1"), {"MAX_RESTARTS": "0"}, [COCO]),
        (("train_base.sh", "split0", "coco", "1"), {"MAX_RESTARTS": ""}, [COCO]),
    ],
)
def test_scripts_call_python_with_the_words_unchanged(repository, words, settings, expected):
    done, calls = run(repository, *words, **settings)
    assert done.returncode == 0, done.stderr
    assert calls == [call(*words) for words in expected]


def test_a_dataset_needs_only_its_description(repository):
    (repository / "config/datasets/birds.yaml").write_text("Data: {num_classes: 8}\n")
    _, calls = run(repository, "test.sh", "split3", "birds", "1", "shot", "5")
    words = ("--config", "config/base/resnet50.yaml", "--opts", "data_set", "birds", "split", "3")
    assert calls == [call("test.py", *words, "shot", "5")]
    done, _ = run(repository, "test.sh", "first", "birds", "1")
    assert done.returncode == 2 and "EXP = first: must be split0, split1" in done.stderr


@pytest.mark.parametrize("net", ["resnet34", "timm:test_vit"])
def test_a_backbone_without_a_file_for_the_dataset_uses_that_of_another(repository, net):
    (repository / "config/datasets/birds.yaml").write_text("Data: {num_classes: 8}\n")
    for dataset, config in (
        ("pascal", "config/pascal/pascal_split1_resnet101.yaml"),
        ("demo", "config/demo/demo_split1_resnet18.yaml"),
    ):
        _, calls = run(repository, "test.sh", "split1", dataset, "1", NET=net)
        assert calls == [call("test.py", "--config", config, "--opts", "backbone", net)]
    _, calls = run(repository, "test.sh", "split1", "birds", "1", NET=net)
    chosen = ["backbone", net] if ":" in net else []
    config = "config/base/resnet50.yaml" if chosen else f"config/base/{net}.yaml"
    data = ("data_set", "birds", "split", "1")
    assert calls == [call("test.py", "--config", config, "--opts", *chosen, *data)]


def test_an_experiment_with_a_file_of_its_own_writes_to_a_folder_of_its_own(repository):
    config = "config/pascal/pascal_wide_resnet50.yaml"
    shutil.copy(repository / "config/pascal/pascal_split0_resnet50.yaml", repository / config)
    _, calls = run(repository, "test.sh", "wide", "pascal", "1")
    assert calls == [call("test.py", "--config", config, "--opts", "exp_name", "wide")]


@pytest.mark.parametrize("failing", ["train_base.py", "train.py"])
def test_a_failing_step_ends_the_script_with_its_exit_code(repository, failing):
    done, calls = run(repository, "train.sh", "split0", "demo", "1", failing=failing)
    assert done.returncode == 7
    assert failing in calls[-1]


def test_scripts_are_found_from_their_own_folder(repository):
    done, calls = run(repository, "test.sh", "split0", "demo", "1", cwd=repository)
    assert done.returncode == 0 and len(calls) == 1


def test_python_without_the_packages_is_named(repository):
    python = repository / "bare"
    python.write_text("#!/bin/sh\ncase $2 in *find_spec*) exit 1 ;; esac\n")
    python.chmod(0o755)
    done, _ = run(repository, "test.sh", "split0", "demo", "1", PYTHON=str(python))
    assert done.returncode == 2
    assert "bare lacks packages of requirements.txt" in done.stderr


# A Python of the version that is filled in. It can make environments, and records what pip does.
INTERPRETER = """#!/bin/sh
case "$1 $2" in
"--version ") echo "Python 3.{minor}.1" ;;
"-c import venv"*) exit {without_venv} ;;
"-c import sys"*) exec "{real}" -c 'import sys
sys.version_info = (3, {minor}, 1)
exec(sys.argv[1])' "$2" ;;
"-m venv")
    echo "venv by ${{0##*/}}" >>"$CALLS"
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python ;;
"-m pip" | "-m pytest" | "-m ruff" | "-m mypy")
    echo "$*" >>"$CALLS"
    [ "$2" != pip ] || printf '%s\\n' 'Collecting torch' '  Downloading torch-2.whl (899.8 MB)' \\
        '  Downloading idna-3.whl (99.8 MB)' 'Installing collected packages: idna, torch'
    [ "$2" != "$FAILING" ] || {{ echo "ERROR: No matching distribution" >&2; exit 1; }} ;;
esac
"""


def run_tests_with(repository, pythons, *words, without_venv=(), **settings):
    """Run run_tests.sh where only these Pythons exist: {name: minor version of 3}."""
    tools = repository / "tools"
    tools.mkdir()
    for tool in ("cat", "cksum", "cp", "dirname", "grep", "head", "mkdir", "sh", "tail"):
        (tools / tool).symlink_to(shutil.which(tool))
    for name, minor in pythons.items():
        text = INTERPRETER.format(
            minor=minor, real=sys.executable, without_venv=int(name in without_venv)
        )
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ("run_tests.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, repository / name)
    return run(repository, "run_tests.sh", *words, PATH=str(tools), PYTHON="", **settings)


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": 13, "python3.12": 12}, "python3"),
        ({"python3": 9, "python3.10": 10}, "python3.10"),
        ({"python3": 14, "python3.12": 12, "python3.11": 11}, "python3.12"),
        ({"python3": 9, "python3.14": 14}, "python3.14"),
        ({"python3": 15}, "python3"),
    ],
)
def test_tested_pythons_make_the_environment_before_newer_ones(repository, pythons, chosen):
    done, calls = run_tests_with(repository, pythons)
    assert done.returncode == 0, done.stderr
    assert calls[0] == f"venv by {chosen}"
    assert [line.split()[-1] for line in calls[1:3]] == ["requirements.txt", "requirements-dev.txt"]
    checks = ["ruff", "ruff", "mypy", "pytest", "pytest"]
    assert [line.split()[1] for line in calls[3:]] == checks


@pytest.mark.parametrize(
    ("pythons", "found"),
    [({}, "none"), ({"python3": 9}, "Python 3.9.1"), ({"python": 8}, "Python 3.8.1")],
)
def test_an_unusable_python_is_one_line_with_the_usable_ones(repository, pythons, found):
    done, calls = run_tests_with(repository, pythons)
    assert done.returncode == 2 and calls == []
    assert done.stderr == (
        f"error: Python 3.10 or newer is needed (tested: 3.10 to 3.13; found: {found})\n"
    )


def test_a_python_without_venv_is_used_last_and_named(repository):
    done, calls = run_tests_with(repository, {"python3": 13}, without_venv=["python3"])
    assert done.returncode == 2 and calls == []
    assert "python3 has no venv module" in done.stderr


def test_a_failed_installation_names_the_python_and_the_tested_ones(repository):
    done, _ = run_tests_with(repository, {"python3": 15}, failing="pip")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "requirements.txt for Python 3.15.1 (tested: 3.10 to 3.13): ERROR: No m" in done.stderr


def test_an_installation_shows_large_downloads_and_its_log_holds_the_rest(repository):
    done, _ = run_tests_with(repository, {"python3": 13})
    shown = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert (
        shown
        == [
            "  Downloading torch-2.whl (899.8 MB)",
            "  Installing the packages, which takes a minute or more",
        ]
        * 2
    )
    log = (repository / ".venv/hdmnet-pip.log").read_text()
    assert "Collecting torch\n" in log and "packages: idna, torch\n" in log and "code" not in log


def test_an_installation_shows_its_last_step_in_one_line_of_a_terminal(repository):
    terminal, end = os.openpty()
    done, _ = run_tests_with(repository, {"python3": 13}, stdout=end)
    os.close(end)
    shown = os.read(terminal, 2**16).decode()
    os.close(terminal)
    assert done.returncode == 0 and shown.count("\n") == shown.count("Installing requirements")
    assert "\r\033[KInstalling collected packages: idna, torch\r\033[K" in shown


def test_quick_tests_are_a_selection(repository):
    _, calls = run_tests_with(repository, {"python3": 13}, "--quick", "-x")
    words = calls[3].split()
    assert words[-1] == "-x" and "--quick" not in words
    selected = [ROOT / word for word in words if word.startswith("tests/")]
    assert selected and all(path.exists() for path in selected)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ((), "exp"),
        (("exp_dir", "a b"), "a b"),
        (("exp_dir=x",), "x"),
        (("Train.exp_dir", "a=b", "data_root", "split"), "a=b"),
    ],
)
def test_reproduce_trains_and_tests_all_folds_and_prints_the_table(repository, words, folder):
    done, calls = run(repository, "reproduce.sh", "coco", "1", *words, NET="vgg")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("coco, vgg: folds 0, 1, 2, 3, supports 1, 5.")
    checked = options("coco", 0, "vgg", *words, "shot", "5")
    expected = [("-m", "util.verify", *checked, "--processes", "1")]
    for fold in range(4):
        for shot in "15":
            settings = options("coco", fold, "vgg", *words, "shot", shot)
            expected += [
                ("train_base.py", *settings, "--if-missing"),
                ("train.py", *settings),
                ("test.py", *settings, "--if-missing"),
            ]
    expected.append(("-m", "util.report", f"{folder}/coco"))
    assert calls == [call(*words) for words in expected]
    # The first that fails ends it.
    done, calls = run(repository, "reproduce.sh", "coco", "1", failing="train.py", SHOTS="5")
    assert done.returncode == 7 and len(calls) == 3 and "<shot> <5>" in calls[2]
    done, calls = run(repository, "reproduce.sh", "coco", "1", failing="-m")
    assert done.returncode == 7 and len(calls) == 1


def test_reproduce_asks_for_what_it_needs(repository):
    for words, text in (
        (("pascal",), "usage: sh reproduce.sh DATASET GPUS"),
        (("pasca", "1"), "DATASET = pasca: must be one of coco, demo, pascal"),
        (("pascal", "x"), "GPUS = x: must be a whole number"),
    ):
        done, calls = run(repository, "reproduce.sh", *words)
        assert (done.returncode, calls) == (2, []) and text in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "shots", "text"),
    [
        ((), "1 x", "SHOTS = 1 x: must be whole numbers"),
        ((), "1,5", "SHOTS = 1,5: must be whole numbers"),
        ((), "0", "SHOTS = 0: must be whole numbers"),
        (("split", "2"), "1", "split: reproduce.sh sets it for each training"),
        (("epochs", "3", "Train.shot=5"), "1", "Train.shot: reproduce.sh sets it"),
        (("exp_name=x",), "1", "exp_name: reproduce.sh sets it"),
        (("epochs", "3", "--viz"), "1", "--viz: reproduce.sh takes settings alone"),
    ],
)
def test_reproduce_refuses_before_any_training_what_a_later_step_would(
    repository, words, shots, text
):
    done, calls = run(repository, "reproduce.sh", "pascal", "1", *words, SHOTS=shots)
    assert (done.returncode, calls, done.stdout) == (2, [], "")
    assert done.stderr.startswith(f"error: {text}") and done.stderr.count("\n") == 1
