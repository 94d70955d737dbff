import io
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from multiprocessing.resource_sharer import DupFd, stop

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler
from torch.utils.data._utils.worker import ManagerWatchdog

from tests.paths import ROOT
from tests.processes import wait_for_end
from util.data.data_loader import Loader, TrainLoader, prepare_worker
from util.runtime.errors import UserError, exits_on_user_error
from util.runtime.seed import seed_everything


class Draws(Dataset):
    """Every item holds draws of all three streams, as many of them as an item before left room for."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        for _ in range(random.randint(0, 3)):
            random.random()
        return {
            "index": index,
            "draws": torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()]),
        }


def make(workers):
    return TrainLoader(Draws(), RandomSampler(Draws()), 2, workers)


def drawn(batches):
    return [(batch["index"].tolist(), batch["draws"].tolist()) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_batches_are_those_of_a_plain_loader(workers):
    plain = DataLoader(Draws(), batch_size=2, shuffle=True, drop_last=True, num_workers=workers)
    seed_everything(5)
    expected = [drawn(plain), drawn(plain)]
    loader = make(workers)
    seed_everything(5)
    assert [drawn(loader), drawn(loader)] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "done"), [(0, 1), (0, 10), (1, 3), (2, 1), (2, 2), (2, 7), (2, 10)]
)
def test_a_pass_goes_on_in_its_middle_as_if_it_had_not_stopped(workers, done):
    loader = make(workers)
    seed_everything(5)
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    random.random(), torch.rand(3)  # what training draws between the batches
    file = io.BytesIO()
    torch.save(loader.position(), file)
    expected = drawn(batches), drawn(loader), random.random()

    file.seek(0)
    other = make(workers)
    seed_everything(99)
    other.resume_at(torch.load(file, weights_only=True))
    assert (drawn(other), drawn(other), random.random()) == expected


@pytest.mark.slow
def test_workers_go_on_alike_however_the_platform_starts_them():
    """On macOS processes are spawned, which takes everything that Python 3.14's forkserver does."""
    loader = make(1)
    seed_everything(5)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    position, expected = loader.position(), drawn(batches)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        other = make(1)
        other.resume_at(position)
        assert drawn(other) == expected
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_a_resumed_pass_can_be_resumed_again():
    loader = make(2)
    seed_everything(5)
    whole = drawn(loader)
    seed_everything(5)
    position, seen = None, []
    for steps in (2, 3, 1):
        fresh = make(2)
        if position is not None:
            fresh.resume_at(position)
        batches = iter(fresh)
        seen += drawn([next(batches) for _ in range(steps)])
        position = fresh.position()
    assert position["done"] == 6 and seen == whole[:6]


def test_several_processes_share_an_epoch_by_its_number():
    samplers = [DistributedSampler(Draws(), 2, rank, seed=1) for rank in range(2)]
    loaders = [TrainLoader(Draws(), sampler, 2, 0) for sampler in samplers]

    def indices(epoch):
        for loader in loaders:
            loader.set_epoch(epoch)
        return [[i for batch in loader for i in batch["index"].tolist()] for loader in loaders]

    first, second = indices(0), indices(1)
    assert not set(first[0]) & set(first[1]) - {first[0][0]}
    assert first != second and indices(0) == first


class Each(Dataset):
    """For each index what a function returns."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return self.function(index)


def fail(index):
    raise UserError("image a.jpg cannot be read")


def test_errors_of_workers_are_one_line():
    with pytest.raises(UserError, match=r"^image a.jpg cannot be read$"):
        next(iter(Loader(Each(fail), workers=1)))


def die(index):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(error_line):
    error = error_line(exits_on_user_error(lambda: next(iter(Loader(Each(die), workers=1)))))
    assert "DataLoader worker" in error and "(out of memory?); lower workers" in error


def wait(index):
    time.sleep(0.3)
    return index


def leave_a_pass_unfinished():
    sys.modules["kept"] = batches = iter(Loader(Each(wait), workers=4))
    next(batches)
    sys.exit(2)


@pytest.mark.slow
def test_an_exit_in_the_middle_of_a_pass_is_silent():
    code = f"from {__name__} import leave_a_pass_unfinished; leave_a_pass_unfinished()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def send_signals(index):
    if index == 0:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    return index


@pytest.mark.slow
def test_workers_outlive_the_signal_that_stops_a_training():
    loader = Loader(Each(send_signals), batch_size=23, workers=1)
    assert len(list(loader)) == 1


def share_a_file(address):
    """Offer a file to other processes as loader processes offer their batches."""
    prepare_worker(0)
    with tempfile.TemporaryFile() as file:
        address.send(DupFd(file.fileno())._id[0])
        address.recv()
        stop(timeout=10)


def test_a_worker_does_not_report_that_the_process_it_loads_for_was_killed(capfd):
    address, other = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=share_a_file, args=(other,))
    worker.start()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address.recv())
    connection.close()  # before the batch was taken
    address.send(None)
    worker.join()
    assert worker.exitcode == 0 and capfd.readouterr().err == ""


def say_who(folder, index):
    (folder / str(os.getpid())).touch()
    return index


def load_and_wait(folder):
    # As where the parent of loader processes is a server of processes, which lives on.
    ManagerWatchdog.is_alive = lambda _: True
    batches = iter(Loader(Each(partial(say_who, folder)), workers=1))  # Its end would be theirs.
    next(batches)
    (folder / "loaded").touch()
    time.sleep(60)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks Linux for processes")
def test_a_worker_ends_with_the_process_it_loads_for(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=load_and_wait, args=(tmp_path,))
    process.start()
    while not (tmp_path / "loaded").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    (worker,) = (int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal())
    wait_for_end([worker])
