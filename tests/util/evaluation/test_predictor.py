from types import SimpleNamespace

import torch

from util.config.schema import Config
from util.evaluation.predictor import build_predictor


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


def test_images_go_together_on_a_gpu_and_one_after_the_other_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9000))
    assert list(build()._together(["a", "b"])) == [["a"], ["b"]]
    predictor = build("cuda")
    assert list(predictor._together(["a", "b"])) == [["a", "b"]]
    assert list(predictor._together([])) == []
    assert predictor.cache_bytes == 1000, "half of the memory that is free"
