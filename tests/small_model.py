"""A small model and drawn episodes for the tests of evaluation; its predictions hold both labels."""

import torch

from model import build_hdmnet
from util.data.draws import draw_test_episodes
from util.data.episodes import EpisodeDataset
from util.data.folds import fold_classes
from util.data.lists import load_lists
from util.data.transform import EvalTransform

SIZE = 33


def small_episodes(tiny_voc, cache, shot=1, part="val", split=0, resized=True):
    """Episodes of the tiny dataset at 33 px."""
    fold = fold_classes(20, "contiguous", split)
    list_file = str(tiny_voc / "val.txt")
    lists = load_lists(str(tiny_voc), list_file, fold, part, str(cache))
    transform = EvalTransform((SIZE, SIZE), resized)
    return EpisodeDataset(lists, fold, part, shot, str(tiny_voc), transform, originals=True)


def small_net(episodes, base_classes=None):
    """HDMNet with random weights, whose logits are spread around zero on the first episode."""
    torch.manual_seed(0)
    base_classes = base_classes or len(episodes.base_classes)
    net = build_hdmnet("resnet18", base_classes, shot=episodes.shot).eval()
    (draw,) = draw_test_episodes(episodes.lists, episodes.shot, 1, 0, 0)
    last = net.decoder.classifier[-1]
    with torch.no_grad():
        net.ensemble.background_merge.weight.copy_(torch.tensor([0.8, 0.2]).view(1, 2, 1, 1))
        # Base probabilities that vary, too.
        net.base.classifier[-1].weight *= 30
        item = episodes.load(*draw, rng=None)
        item.pop("class_index", None)  # The meta learner does not depend on it.
        out = plain_output(net, item)
        difference = (out.meta[:, 1] - out.meta[:, 0]).flatten()
        factor = 1 / difference.std()
        last.weight *= factor
        last.bias *= factor
        last.bias[0] += difference.median() * factor
    return net


def plain_output(net, item):
    """The output for one loaded episode, nothing shared with others."""
    keys = [key for key in ("query", "support", "support_mask") if key in item]
    index = torch.tensor([item["class_index"]]) if "class_index" in item else None
    with torch.no_grad():
        return net(*(item[key][None] for key in keys), index)
