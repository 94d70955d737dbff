"""The model, training and testing on CUDA give what they give on the CPU; skipped without a GPU."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from model import build_pspnet, hdmnet_loss
from model.features import map_tensors, split_queries, split_supports, stack_queries, stack_supports
from model.reference import reference_forward as reference
from segmenter import FewShotSegmenter, Support, SupportSet
from tests.faults.laboratory import Laboratory
from tests.golden import FILES, check_outputs, check_training_steps
from tests.model.random_nets import (
    CLASSES,
    in_double,
    random_episode,
    random_net,
    without_dropout,
)
from tests.processes import free_port, spawn_two
from tests.small_model import SIZE as SMALL
from tests.small_model import small_episodes, small_net
from util.data.draws import draw_test_episodes
from util.evaluation.evaluator import evaluate_episodes
from util.evaluation.metrics import confusion
from util.evaluation.predictor import Predictor
from util.runtime.distributed import TIMEOUT, Processes
from util.runtime.distributed import _join as join
from util.runtime.errors import exits_on_user_error
from util.runtime.precision import DTYPES, Precision
from util.training.iteration import Iteration, Recipe
from util.training.parallel import average_gradients, distributed, running_statistics
from util.training.schedule import freeze_untrained, hdmnet_optimizer

CPU, DEVICE = torch.device("cpu"), torch.device("cuda", 0)
ALONE = Processes(0, 1, DEVICE)
SIZE = (57, 73)
# Algorithms of cuDNN like Winograd's round up to five times as much as the sums of the CPU.
SLACK = 5

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")


@pytest.fixture(autouse=True)
def float32():
    """Without TF32, whose products have ten bits of precision."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def assert_close(actual, expected):
    for name, values in actual._asdict().items():
        torch.testing.assert_close(
            values, getattr(expected, name), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", FILES)
def test_golden_outputs(name):
    check_outputs(name, DEVICE, SLACK)


@pytest.mark.parametrize("name", FILES)
def test_golden_training_steps(name):
    check_training_steps(name, DEVICE, SLACK)


CASES = [("resnet18", 3, "bfpibe"), ("resnet50", 2, "bpfb"), ("vgg16", 1, "be")]


@pytest.mark.parametrize(("backbone", "shot", "masks"), CASES)
@torch.no_grad()
def test_outputs_equal_those_of_the_reference_and_of_the_cpu(backbone, shot, masks):
    net = random_net(backbone, shot)
    episode = random_episode(SIZE, 2, shot, masks)
    expected = net(*episode)
    net.to(DEVICE)
    out = net(*on(DEVICE, episode))
    assert_close(out, reference(net, *on(DEVICE, episode)))
    assert_close(map_output(out, CPU), expected)


def map_output(out, device):
    return type(out)(*(on(device, v) if isinstance(v, list) else v.to(device) for v in out))


def losses_of(net, episode, forward=None):
    query_mask = episode[2][:, 0].flip(1)
    base_mask = torch.where(query_mask == 1, 1 + episode[3][:, None, None], query_mask)
    return hdmnet_loss((forward or net)(*episode), query_mask, base_mask)


@pytest.mark.parametrize(("backbone", "shot", "masks"), CASES)
def test_losses_and_gradients_equal_those_of_the_reference(backbone, shot, masks):
    net = random_net(backbone, shot).double().train().to(DEVICE)
    episode = on(DEVICE, in_double(random_episode(SIZE, 2, shot, masks)))
    results = []
    for forward in (net, lambda *arguments: reference(net, *arguments)):
        net.zero_grad(set_to_none=True)
        losses = losses_of(net, episode, forward)
        losses.total.backward()
        gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        results.append((torch.stack(losses).detach(), gradients))
    (losses, gradients), (expected_losses, expected) = results
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys() and len(gradients) > 100
    largest = max(gradient.abs().max() for gradient in expected.values()).item()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name
        )


@pytest.mark.parametrize(
    ("amp", "backbone_dtype"),
    [("off", "bf16"), ("off", "fp16"), ("bf16", None), ("fp16", None), ("bf16", "fp16")],
)
def test_training_steps_in_reduced_precision(amp, backbone_dtype):
    episode = random_episode(SIZE, 2, 2, "bpfb")
    steps = {}
    for key in (("off", None), (amp, backbone_dtype)):
        precision = Precision(key[0], DEVICE)
        dtype = DTYPES.get(key[1])
        net = random_net("resnet50", 2, backbone_dtype=dtype).train().to(DEVICE)
        before = [p.detach().clone() for p in net.parameters() if p.requires_grad]

        def losses(forward, batch):
            found = losses_of(forward, [batch[n] for n in sorted(batch)])
            return {"loss": found.total, "main": found.main, "distillation": found.distillation}

        recipe = Recipe(net, hdmnet_optimizer(net, 1e-4), None, 1, 1, {}, losses, *[None] * 3)
        iteration = Iteration(recipe, ALONE, precision)
        batch = dict(zip("abcd", episode, strict=True))
        # The scaler of float16 starts too high, and skips steps until it has come down.
        for _ in range(12):
            values = iteration(iter([batch]), SimpleNamespace(signal=None)).values
            steps.setdefault(key, values)
            if "gradient" in values:
                break
        else:
            raise AssertionError("no step had finite gradients")
        after = [p for p in net.parameters() if p.requires_grad]
        assert all(p.isfinite().all() for p in after)
        moved = [not one.equal(other) for one, other in zip(before, after, strict=True)]
        assert np.mean(moved) > 0.9
    exact, reduced = steps.values()
    for name in ("loss", "main", "distillation"):
        assert reduced[name].item() == pytest.approx(exact[name].item(), rel=0.03), name


@pytest.mark.parametrize(("amp", "grad_accum"), [("off", 1), ("off", 2), ("fp16", 2)])
def test_passes_replayed_from_graphs_are_those_of_single_operations(amp, grad_accum):
    # Of several lengths, in turn, so that graphs are captured and replayed between each other.
    masks = ["bbbb", "ffff", "pepe", "bbbb", "ffff", "bepi", "bbbb", "ffff"] * 3
    batches = [
        dict(zip("abcd", random_episode(SIZE, 2, 2, kinds, seed), strict=True))
        for seed, kinds in enumerate(masks)
    ]
    results = []
    for captured in (False, True):
        net = random_net("resnet18", 2).train().to(DEVICE)
        torch.cuda.manual_seed(0)
        drop = torch.nn.Dropout(0.5)

        def losses(forward, batch, drop=drop):
            found = losses_of(forward, [batch[n] for n in sorted(batch)])
            return {"loss": found.total, "drawn": drop(torch.ones(100, device=DEVICE)).sum()}

        def lengths_of(batch, net=net):
            return net.mask_lengths(batch["c"])

        optimizer = hdmnet_optimizer(net, 1e-6)
        freeze_untrained(net, optimizer)
        recipe = Recipe(
            *(net, optimizer, None, grad_accum, 1, {}, losses),
            *[None] * 3,
            lengths_of=lengths_of if captured else None,
        )
        iteration, source = Iteration(recipe, ALONE, Precision(amp, DEVICE)), iter(batches)
        values = []
        for _ in range(len(batches) // grad_accum):
            values.append(iteration(source, SimpleNamespace(signal=None)).values)
        gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        results.append((values, gradients))
    (values, gradients), (replayed, others) = results
    # The scaler of float16 starts too high, and has come down by then.
    assert "gradient" in values[-1]
    for one, other in zip(values, replayed, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-3)
        # The random stream goes on alike.
        assert other["drawn"].equal(one["drawn"])
    assert gradients.keys() == others.keys() and len(gradients) > 100
    largest = max(gradient.abs().max() for gradient in gradients.values()).item()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            *(others[name], gradient),
            rtol=1e-2,
            atol=1e-3 * largest,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@torch.no_grad()
def test_features_kept_on_the_host_make_up_a_batch_on_the_device():
    net = random_net(shot=2).to(DEVICE)
    query, support, mask, _ = on(DEVICE, random_episode(SIZE, 3, 2, "bfepbi"))
    expected = net(query, support, mask)

    def kept(features):
        return map_tensors(map_tensors(features, torch.Tensor.cpu), lambda x: x.to(DEVICE))

    queries = [kept(one) for one in split_queries(net.encode_query(query))]
    encoded = split_supports(net.encode_support(support, mask))
    supports = [[kept(one) for one in row] for row in encoded]
    assert_close(net.segment(stack_queries(queries), stack_supports(supports), SIZE), expected)


@pytest.mark.parametrize(("shot", "batch_size", "cache_bytes"), [(1, 1, 2**30), (2, 3, 8e5)])
def test_scores_are_those_of_the_cpu(shot, batch_size, cache_bytes, tiny_voc, tmp_path):
    episodes = small_episodes(tiny_voc, tmp_path, shot)
    net = small_net(episodes)
    runs = [draw_test_episodes(episodes.lists, shot, 12, seed, 0) for seed in (510, 365)]
    evaluations = []
    for device in (CPU, DEVICE):
        predictor = Predictor(
            net.to(device), episodes, device, batch_size=batch_size, cache_bytes=cache_bytes
        )
        evaluations.append(evaluate_episodes(predictor, runs, Processes(0, 1, device)))
    expected, found = evaluations
    records, others = found.counts.records, expected.counts.records
    moved = sum(np.abs(records[name] - others[name]).sum() for name in ("final", "meta"))
    assert moved <= 2e-4 * others["pixels"].sum()
    assert (records[["pixels", "classes"]] == others[["pixels", "classes"]]).all()
    assert found.work.hits == expected.work.hits
    for one, other in zip(found.runs, expected.runs, strict=True):
        for name in ("mIoU", "mIoU_m", "mIoU_b", "FBIoU"):
            assert one[name] == pytest.approx(other[name], abs=1e-3), name


def test_pixels_are_counted_on_the_device():
    prediction, label = torch.randint(0, 5, (2, 40, 30))
    label[:3] = 255
    expected = confusion(prediction, label, 5)
    assert (confusion(prediction.to(DEVICE), label, 5) == expected).all()


def test_the_segmenter_finds_what_it_finds_on_the_cpu(tiny_voc, tmp_path):
    net = small_net(small_episodes(tiny_voc, tmp_path))
    pictures = sorted((tiny_voc / "JPEGImages").iterdir())[:3]
    found = {}
    for fitted_on in (CPU, DEVICE):
        FewShotSegmenter(net, SMALL, "resnet18", fitted_on).fit(
            [Support(pictures[0], box=(30, 30, 90, 80))]
        ).save(tmp_path / "box.support")
        for device in (CPU, DEVICE):
            segmenter = FewShotSegmenter(net, SMALL, "resnet18", device)
            supports = SupportSet.load(tmp_path / "box.support")
            results = segmenter.segment(pictures, supports, batch_size=2)
            found[fitted_on, device] = np.stack([r.logits for r in results])
    expected = found.pop((CPU, CPU))
    for key, logits in found.items():
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3, err_msg=str(key))


@pytest.mark.parametrize("graphs", [False, True])
def test_a_killed_training_goes_on_bit_for_bit(graphs, tmp_path):
    laboratory = Laboratory(tmp_path)
    laboratory.settings += ["seed_deterministic=True", f"cuda_graphs={graphs}"]
    run = laboratory.start("cut")
    run.wait_for(lambda: run.iteration() >= 6)
    run.kill()
    run = laboratory.start("cut")
    assert run.wait() == 0, run.text
    assert "1 process on a GPU" in run.text and run.resumed_at() > 0
    laboratory.check_end("cut")


def test_memory_that_does_not_suffice_names_the_settings_that_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        exits_on_user_error(lambda: torch.empty(2**45, device=DEVICE))()
    text = capsys.readouterr().err
    assert text.startswith("error: out of memory (") and text.count("\n") == 1
    assert "grad_accum" in text and "checkpoint_activations True" in text


@pytest.fixture
def alone_in_a_group(monkeypatch):
    """This process in a group of its own over NCCL, which is taken for a group of two."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name, value in (("MASTER_PORT", free_port()), ("RANK", 0), ("WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))
    join(ALONE, TIMEOUT)
    yield Processes(0, 2, DEVICE)
    ALONE.leave()


def test_gradients_are_averaged_over_nccl(alone_in_a_group):
    assert "cuda:nccl" in dist.get_backend_config()
    episode = on(DEVICE, random_episode(SIZE, 2, 1, "bp"))
    net = random_net("resnet18", 1).to(DEVICE)
    gradients = []
    for forward in (net.train(), distributed(net, alone_in_a_group)):
        net.zero_grad(set_to_none=True)
        losses_of(net, episode, forward).total.backward()
        gradients.append(
            {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        )
    assert forward is not net
    expected, averaged = gradients
    assert averaged.keys() == expected.keys() and len(averaged) > 100
    for name, gradient in averaged.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    assert alone_in_a_group.sum(np.array([3, 4])).tolist() == [3, 4]  # over gloo
    average_gradients(net.parameters())
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.equal(averaged[name])
    alone_in_a_group.share([parameter.data for parameter in net.parameters()])


def test_batch_norms_that_learn_are_synchronised_over_nccl(alone_in_a_group):
    image = torch.randn(2, 3, *SIZE, device=DEVICE)
    results = []
    for processes in (ALONE, alone_in_a_group):
        torch.manual_seed(0)
        net = without_dropout(build_pspnet("resnet18", CLASSES)).to(DEVICE)
        out = distributed(net, processes)(image)
        out.square().mean().backward()
        results.append([out, *running_statistics(net), *(p.grad for p in net.parameters())])
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in net.modules())
    alone, synchronised = results
    for one, other in zip(alone, synchronised, strict=True):
        largest = one.abs().max().item()
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2 * largest)


@two_devices
@torch.no_grad()
def test_a_model_on_a_device_that_is_not_the_current_one():
    net = random_net("resnet18", 2)
    episode = random_episode(SIZE, 1, 2, "bp")
    expected = net.to(DEVICE)(*on(DEVICE, episode))
    other = torch.device("cuda", 1)
    out = net.to(other)(*on(other, episode))
    assert torch.cuda.current_device() == 0
    assert_close(map_output(out, CPU), map_output(expected, CPU))


@two_devices
def test_two_processes_average_their_gradients():
    spawn_two(check_averaged_gradients)


def check_averaged_gradients(processes):
    torch.backends.cudnn.allow_tf32 = False
    episode = on(processes.device, random_episode(SIZE, 2, 1, "bp"))
    mine = [tensor[processes.rank :][:1] for tensor in episode]
    net = random_net("resnet18", 1).to(processes.device)
    losses_of(net, mine, distributed(net, processes)).total.backward()
    averaged = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    halves = [losses_of(net, [t[k : k + 1] for t in episode]).total for k in (0, 1)]
    (sum(halves) / 2).backward()
    for name, gradient in averaged.items():
        expected = dict(net.named_parameters())[name].grad
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5, msg=name)
