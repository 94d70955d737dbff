"""The loss, compared with its terms written out."""

import pytest
import torch
import torch.nn.functional as F

from model import HDMNetOutput, hdmnet_loss
from model.loss import correlation_distillation


@pytest.fixture
def maps():
    """A coarse and a fine correlation map of two episodes."""
    torch.manual_seed(0)
    return [torch.randn(2, size, size, dtype=torch.double, requires_grad=True) for size in (4, 8)]


@pytest.fixture
def mask():
    """Masks of two queries, whose class covers whole cells of the coarse map, and parts of some."""
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, 2:6, 1:7] = mask[1, :4] = 1
    mask[1, 6:] = 255
    return mask


def test_the_coarsest_map_learns_from_the_truth_and_the_others_from_the_one_before(maps, mask):
    found = correlation_distillation(maps, mask)
    whole = (mask == 1).view(2, 4, 2, 4, 2).all(4).all(2).flatten(1).double()
    resized = F.interpolate(maps[0][:, None], size=(8, 8), mode="bilinear")
    teachers = whole / whole.sum(1, keepdim=True), resized.flatten(1).softmax(1)
    terms = [
        F.kl_div(student.flatten(1).log_softmax(1), teacher, reduction="batchmean")
        for teacher, student in zip(teachers, maps, strict=True)
    ]
    assert found.item() == pytest.approx(sum(terms).item() / 2, rel=1e-5)
    # A teacher learns nothing from its student.
    (gradient,), (alone,) = (torch.autograd.grad(loss, maps[0]) for loss in (found, terms[0] / 2))
    torch.testing.assert_close(gradient, alone, rtol=1e-5, atol=1e-8)


def test_cross_entropies_leave_out_ignored_pixels(maps, mask):
    final, meta = torch.randn(2, 2, 2, 8, 8)
    base, base_mask = torch.randn(2, 6, 8, 8), torch.randint(0, 6, (2, 8, 8))
    base_mask[0, :3] = 255
    out = HDMNetOutput(final, meta, base, maps, torch.ones(2), torch.ones(2, 2, 8, 8))
    losses = hdmnet_loss(out._replace(base_map=base.requires_grad_()), mask, base_mask)
    assert losses.main.dtype == torch.float32 and not losses.base.requires_grad

    def entropy(logits, labels):
        valid = labels != 255
        shares = logits.softmax(1).movedim(1, -1)[valid]
        return -shares[range(len(shares)), labels[valid]].log().mean()

    torch.testing.assert_close(losses.main, entropy(final, mask) + entropy(meta, mask))
    torch.testing.assert_close(losses.base, entropy(base, base_mask))
