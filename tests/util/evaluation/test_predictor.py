from inspect import signature
from types import SimpleNamespace

import pytest
import torch

from util.config.schema import Config
from util.evaluation import predictor
from util.evaluation.counts import Counts
from util.evaluation.episode_parts import EpisodeParts
from util.evaluation.evaluator import evaluate_base, evaluate_episodes
from util.evaluation.metrics import episode_scores
from util.evaluation.model import load_tested
from util.evaluation.predictor import Predictor, _filled, build_predictor
from util.evaluation.prior_baseline import baseline_scores


def build(device="cpu", **options):
    settings = {"workers": 5, "batch_size_val": 3, "feature_cache_gb": 2.5, "ensemble": False}
    cfg = Config(num_classes=2, folds=[[2]], data_set="parts", ori_resize=False, **settings)
    episodes = SimpleNamespace(base_classes=(1,))
    net = SimpleNamespace(base=SimpleNamespace(base_classes=1))
    return build_predictor(cfg, net, episodes, torch.device(device), **options)


def test_the_settings_say_how_a_model_is_run():
    built = build(workers=1, prior=True)
    assert (built.batch_size, built.workers, built.cache_bytes) == (3, 1, 2.5 * 2**30)
    assert (built.original_size, built.ensemble, built.prior) == (False, False, True)
    assert built.scored_base_classes == 1


def test_without_settings_a_model_runs_plainly():
    built = build()
    plain = Predictor(built.net, built.episodes, torch.device("cpu"))
    assert (plain.batch_size, plain.workers, plain.cache_bytes, plain.ann_type) == (1, 0, 0, "mask")
    assert (plain.original_size, plain.ensemble, plain.prior) == (True, True, False)
    assert plain.scored_base_classes == 1 and build(own_classes=False).scored_base_classes == 0
    built.net.base.base_classes = 2
    assert Predictor(built.net, built.episodes, torch.device("cpu")).scored_base_classes == 0


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (load_tested, {"scaled": True, "data_set": None}),
        *((function, {"skip_absent": False}) for function in (episode_scores, baseline_scores)),
        (evaluate_episodes, {"skip_absent": False, "threshold": None, "journal": None}),
        (evaluate_base, {"workers": 0}),
        (EpisodeParts, {"original_size": True, "ann_type": "mask"}),
        (Counts, {"prior_classes": 0}),
    ],
)
def test_what_is_not_given_is_the_protocol_of_the_paper(function, defaults):
    parameters = signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


@pytest.mark.parametrize(
    ("fitted", "shape"),
    [((33, 33), (8, 6)), ((20, 33), (5, 6)), ((33, 10), (8, 2)), ((1, 1), (1, 1))],
)
def test_a_map_is_cut_to_what_the_image_fills(fitted, shape):
    values = torch.arange(48.0).view(8, 6)
    assert _filled(values, fitted, (33, 33)).equal(values[: shape[0], : shape[1]])


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_a_gpu_gets_images_together_from_pinned_memory_and_half_of_its_own_keeps_features(
    device, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9000))
    built, given = build(device), []
    built.net.eval = bool
    assert built.cache_bytes == (1000 if device == "cuda" else 2.5 * 2**30)
    assert len(list(built._together(["a", "b"]))) == (1 if device == "cuda" else 2)
    monkeypatch.setattr(
        predictor, "Loader", lambda *args, **options: given.append((args, options)) or []
    )
    for cores, workers in ((2, 2), (9, 5)):
        monkeypatch.setattr(predictor, "available_cores", lambda cores=cores: cores)
        assert list(built.predict([], [()])) == [[]]
        args, options = given.pop()
        assert args == (built.parts, workers) and options["pin_memory"] == (device == "cuda")
    assert list(built.predict([], [])) == list(built._together([])) == [] and not given
