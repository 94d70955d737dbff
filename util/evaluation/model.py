"""Loading a model to test, whatever shot and number of base classes its weights were trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model import HDMNet, build_hdmnet
from util.checkpoints.io import (
    check_backbone,
    check_classes,
    is_shot_weight,
    load_weights,
    read_checkpoint,
)
from util.pretrained.kinds import HDMNET, require_kind


class LoadedModel(NamedTuple):
    """A model that was loaded for a test."""

    net: HDMNet
    shot: int  # that its weights were trained with
    notes: list[str]  # what a reader of the scores has to know of the weights, a sentence each
    own_classes: bool = True  # False: the base learner is of another dataset


def load_tested(
    path: Path,
    base_classes: tuple[int, ...],
    arguments: Mapping[str, Any],
    scaled: bool = True,
    data_set: str | None = None,
) -> LoadedModel:
    """Load a checkpoint of ours or of the published code.

    Weights of another shot than the test's: what matching gathers, a sum over the supports, is
    brought to the scale of training, and all supports weigh alike, since the weights that `kshot_rw`
    learned are as many as the supports of training. Weights of another dataset or number of base
    classes: the model gets as many as they have.

    Args:
        path: The checkpoint.
        base_classes: The base classes of the fold that is tested.
        arguments: Arguments of `build_hdmnet`, those of the test.
        scaled: Whether matching is brought to the scale of training.
        data_set: The dataset of the test; None where it does not matter.

    Raises:
        UserError: The checkpoint is not readable or does not fit.
    """
    content = read_checkpoint(path)
    contents = require_kind(HDMNET, content, str(path))
    check_backbone(content, arguments["backbone"], str(path))
    state, arguments, notes = content["state_dict"], dict(arguments), []
    trained_on = content.get("data_set", data_set)
    own_classes = data_set is None or trained_on == data_set
    if content.get("mixed_images", "drop") != "drop":
        rule = content["mixed_images"]
        notes.append(f"The weights were trained with mixed_images {rule}.")
    if not own_classes:
        notes.append(
            f"The weights were trained on {trained_on}: a base learner is used as it is, and not "
            "scored."
        )
    elif contents.base_classes in (0, len(base_classes)):
        check_classes(content, base_classes, str(path))
    else:
        notes.append(
            f"The weights were trained on {contents.base_classes} base classes and this fold has "
            f"{len(base_classes)}: the base learner is used as it is, and not scored."
        )
    if contents.shot != arguments["shot"]:
        matching = (
            f"multiplied by {contents.shot}/{arguments['shot']}" if scaled else "left as it is"
        )
        notes.append(
            f"The weights were trained with {contents.shot}-shot: what matching gathers is "
            f"{matching}, and all supports weigh alike."
        )
        state = {key: value for key, value in state.items() if not is_shot_weight(key)}
        arguments["kshot_trans_dim"] = None
        if scaled:
            arguments["trained_shot"] = contents.shot
    net = build_hdmnet(base_classes=contents.base_classes, **arguments)
    load_weights(net, state, str(path))
    return LoadedModel(net, contents.shot, notes, own_classes)
