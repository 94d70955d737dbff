import pytest
import torch

from model import build_hdmnet
from util.checkpoints.published_names import to_published
from util.config import load_config
from util.evaluation.model import load_tested
from util.runtime.errors import UserError

BASE_CLASSES = tuple(range(6, 21))


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint of weights trained with some shot, and returns the net and its path."""

    def write(shot, published=False, base_classes=BASE_CLASSES, details=None, **options):
        torch.manual_seed(shot)
        net = build_hdmnet("resnet18", len(base_classes), shot=shot, **options)
        content = {"state_dict": net.state_dict(), "shot": shot, "base_classes": [*base_classes]}
        content |= details or {}
        if published:
            content = {"state_dict": to_published(net.state_dict())}
        path = tmp_path / f"{shot}{published}.pth"
        torch.save(content, path)
        return net, path

    return write


def load(path, scaled=True, **settings):
    words = [f"{key}={value}" for key, value in settings.items()]
    cfg = load_config("config/demo/demo_split0_resnet18.yaml", words)
    net, shot, notes, _ = load_tested(path, BASE_CLASSES, cfg.model_arguments, scaled)
    return net, shot, " ".join(notes)


def assert_same_weights(net, other):
    states = net.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


# Linear weights of supports tell the shot too.
@pytest.mark.parametrize(("published", "options"), [(False, {}), (True, {"kshot_trans_dim": 0})])
def test_at_the_shot_of_training_the_weights_are_all_there(write, published, options):
    trained, path = write(5, published, **options)
    net, shot, said = load(path, shot=5, **options)
    assert shot == 5 and not said
    assert net.match_scale == 1 and net.ensemble.shot_weights is not None
    assert_same_weights(net, trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained_shot", "shot", "published"), [(1, 5, False), (5, 1, False), (5, 2, True)]
)
def test_at_another_shot_matching_is_scaled_and_supports_weigh_alike(
    write, published, trained_shot, shot
):
    _, path = write(trained_shot, published)
    net, found, said = load(path, shot=shot)
    assert found == trained_shot and f"multiplied by {trained_shot}/{shot}" in said
    assert net.match_scale == trained_shot / shot
    plain, _, said = load(path, shot=shot, scaled=False)
    assert plain.match_scale == 1 and "left as it is" in said
    assert_same_weights(net, plain)
    distances = torch.rand(3, shot)
    for one in (net, plain):
        assert one.ensemble.adjustment(distances).equal(distances.mean(1))
    episode = torch.rand(1, 3, 33, 33), torch.rand(1, shot, 3, 33, 33), torch.ones(1, shot, 33, 33)
    with torch.no_grad():
        outputs = [one.eval()(*episode).meta for one in (net, plain)]
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("published", [False, True])
def test_the_number_of_base_classes_is_that_of_the_checkpoint(write, published):
    trained, path = write(1, published, base_classes=range(1, 61))
    net, _, said = load(path)
    assert said.startswith("The weights were trained on 60 base classes and this fold has 15")
    assert net.base.base_classes == 60
    assert_same_weights(net, trained)


# As many base classes as the fold that is tested, and one of two stages.
@pytest.mark.slow
@pytest.mark.parametrize("base_classes", [range(1, 16), BASE_CLASSES, ()])
def test_weights_of_another_dataset_are_tested_as_they_are(write, base_classes):
    details = {"data_set": "pascal", "base_classes": [*range(1, 16)]}
    trained, path = write(1, base_classes=base_classes, details=details)
    arguments = load_config("config/demo/demo_split0_resnet18.yaml").model_arguments
    for data_set in ("demo", "voc"):
        loaded = load_tested(path, BASE_CLASSES, arguments, data_set=data_set)
        assert not loaded.own_classes
    (note,) = loaded.notes
    assert note.startswith("The weights were trained on pascal: a base learner is used as it is")
    assert_same_weights(loaded.net, trained)


@pytest.mark.parametrize("rule", ["background", "ignore"])
def test_weights_of_other_training_images_are_noted(rule, write):
    _, path = write(1, details={"mixed_images": rule, "data_set": "demo"})
    arguments = load_config("config/demo/demo_split0_resnet18.yaml").model_arguments
    loaded = load_tested(path, BASE_CLASSES, arguments, data_set="demo")
    assert loaded.own_classes
    assert loaded.notes == [f"The weights were trained with mixed_images {rule}."]


@pytest.mark.slow
def test_other_weights_are_refused(write, tmp_path):
    net, _ = write(1)
    path = tmp_path / "base.pth"
    torch.save({"state_dict": net.base.state_dict()}, path)
    with pytest.raises(UserError, match="another kind, base learner; needed here: HDMNet"):
        load(path)
    _, path = write(1, base_classes=range(1, 16))
    with pytest.raises(UserError, match="was trained on base classes"):
        load(path)
