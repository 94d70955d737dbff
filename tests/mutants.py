"""Change the code in one random place at a time, and list the changes that no test notices.

    python tests/mutants.py 100 model util/training    # 100 mutants of the modules in two folders

cosmic-ray (pip install cosmic-ray) makes the mutants. They run in a temporary copy of the repository.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from difflib import unified_diff
from itertools import islice
from pathlib import Path

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

# Loaded before the processes of the mutants are forked: the packages that take long to import.
PACKAGES = (
    *("torch._dynamo", "torch._inductor.config", "torchvision", "torch.distributed.run"),
    *("timm", "mmcv.cnn", "mmseg.core", "mmseg.ops", "hypothesis", "pydantic", "scipy.ndimage"),
    *("matplotlib.pyplot", "skimage.morphology", "tensorboardX", "pycocotools.mask"),
)
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
IDENTITY = {"Is", "IsNot"}
SECONDS = 600  # a mutant that takes longer hangs: it has been noticed
MEMORY = 12 * 2**30  # bytes that a mutant may ask for


def main():
    """Print what became of each mutant, and the changes that no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, help="how many mutants")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        enter_copy(folder)
        modules = sorted(path for name in args.folders for path in Path(name).glob("*.py"))
        found = [mutant for path in modules for mutant in mutants(path)]
        for name in args.folders:
            if failed := failure(f"tests/{name}") or failure(f"tests/{name}", "-m", "slow"):
                sys.exit(f"fails without a change: {failed}")
        print(f"{len(found)} mutants of {len(modules)} modules", flush=True)
        random.Random(args.seed).shuffle(found)
        survivors = 0
        for number, mutant in enumerate(islice(filter(compiles, found), args.number), 1):
            test = noticed_by(*mutant)
            survivors += not test
            fate = f"noticed by {test}" if test else "survived"
            print(f"{number} {' '.join(map(str, mutant))}: {fate}", flush=True)
            if not test:
                texts = mutant[0].read_text(encoding="utf-8"), mutated(*mutant)
                lines = unified_diff(*(text.splitlines() for text in texts), n=1, lineterm="")
                print("\n".join(list(lines)[2:]), flush=True)
        print(f"{survivors} of {number} survived")


def enter_copy(folder):
    """Copy the files that git knows to a folder, and make it the current one."""
    names = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in names.stdout.split("\0")[:-1]:
        copy = Path(folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, copy)
    os.chdir(folder)
    sys.path[0] = folder
    for package in PACKAGES:
        importlib.import_module(package)


def mutants(path):
    """Yield the mutants of a module, as (path, name of the operator, number of the occurrence).

    Left out are changes within annotations, and those that hardly differ from others or from the
    code: `+` becomes another operator of numbers and never one of bits, and `is` only `is not`.
    """
    text = path.read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(text)))
    annotations = list(annotated(text))
    for name in cosmic_ray.plugins.operator_names():
        words = set(name.split("_")[1:])
        operator = cosmic_ray.plugins.get_operator(name)
        related = "Comparison" not in name or len(words & IDENTITY) in (0, 2)
        related &= "Binary" not in name or len(words & ARITHMETIC) in (0, 2)
        if operator.arguments() or not related:
            continue
        positions = (place for node in nodes for place in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if not any(first <= start < last for first, last in annotations):
                yield path, name, occurrence


def annotated(text):
    """Yield the places of annotations, as ((line, column), (line, column))."""
    for node in ast.walk(ast.parse(text)):
        for field in ("annotation", "returns"):
            if place := getattr(node, field, None):
                yield (place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)


def mutated(path, operator, occurrence):
    """Return the text of a module after a change."""
    text = path.read_text(encoding="utf-8")
    return mutate_code(text, cosmic_ray.plugins.get_operator(operator)(), occurrence)


def compiles(mutant):
    """Return whether a mutant is Python: an operator may take the star of `def f(*, a)` for one."""
    try:
        ast.parse(mutated(*mutant))
    except SyntaxError:
        return False
    return True


def noticed_by(path, operator, occurrence):
    """Run the tests of a module's folder after a change, the likely and quick ones first.

    Returns what `failure` does.
    """
    folder = f"tests/{path.parent}"
    own = f"{folder}/test_{path.name}"
    text = path.read_text(encoding="utf-8")
    path.write_text(mutated(path, operator, occurrence), encoding="utf-8")
    try:
        if Path(own).exists() and (failed := failure(own)):
            return failed
        return failure(folder, f"--ignore={own}") or failure(folder, "-m", "slow")
    finally:
        path.write_text(text, encoding="utf-8")


def failure(*words):
    """Run tests in a process of their own, the quick ones by default; returns what failed or ""."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(words,))
    process.start()
    process.join(SECONDS)
    hangs = process.is_alive()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ""
    lines = Path("mutant.log").read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return "the limit of time" if hangs else " ".join(failed) or f"exit code {process.exitcode}"


def run(words):
    """Run tests, and end the process with their status."""
    os.setsid()
    with open("mutant.log", "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # A file that is changed twice in a second would be taken for its compiled form.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # Processes that tests start need not run this file first, and torch.compile looks for a file.
    sys.modules["__main__"] = importlib.import_module("pytest.__main__")
    options = ["-x", "-p", "no:cacheprovider", "--basetemp", "temporary", "-m", "not slow"]
    sys.exit(pytest.main([*options, *words]))


if __name__ == "__main__":
    main()
