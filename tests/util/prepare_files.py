"""What the tests of the preparations share: tiny images, folder contents, damage, a kill."""

import multiprocessing
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image


def noise(size, seed=0):
    """A picture of random colours, uint8 (*size, 3)."""
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


def write_image(path, pixels, **options):
    """A file of the type that its name says; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def becomes(pixels):
    """A function that makes a file such an image."""
    return partial(write_image, pixels=pixels)


def contents(folder):
    """The files under a folder: name → bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path):
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def run_killed(function, renames):
    """Run `function` in a process that dies, without any cleaning up, at its n-th rename.

    A rename is what gives a file its final name. Returns whether it got that far.
    """

    def work():
        done = iter(range(renames))
        rename = os.replace

        def rename_or_die(source, target):
            if next(done, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = rename_or_die
        function()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def forget_classes(name="mine"):
    """Take the names of the classes out of a description, so that others may be prepared."""
    path = Path(f"config/datasets/{name}.yaml")
    path.write_text(re.sub(r"\n  class_names: .*", "", path.read_text()))
