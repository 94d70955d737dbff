"""Weights and inputs that any implementation can rebuild, bit for bit, from names and seeds alone.

The golden files beside this script were computed with the published HDMNet model holding exactly
these weights. Only NumPy's frozen legacy generator (``RandomState``) is used, so the numbers do not
depend on the machine, on PyTorch or on NumPy's version.
"""

import zlib

import numpy as np


def _rng(name, seed=0):
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0x7FFFFFFF)


def tensor_for(key, shape, seed=0):
    """The float32 array of one state-dict entry.

    Args:
        key: the entry's name, as in the published checkpoints (see state_dict_shapes.json).
        shape: its shape.
        seed: another seed gives another, equally valid, set of weights.

    A golden file's config holds `meta_bias`: the two values that then replace the bias of the meta
    learner's last layer, transformer.mix_transformer.cls.4.bias, so that both outcomes occur.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if key == "gram_merge.weight":
        return np.array([1.0, 1.5], np.float32).reshape(shape)
    if key == "cls_merge.weight":
        return np.array([0.8, 0.2], np.float32).reshape(shape)
    if key.startswith("kshot_rw"):  # alive and far from uniform
        noise = _rng(key, seed).standard_normal(shape)
        return ((4.0 if len(shape) > 1 else 0.3) * np.abs(noise)).astype(np.float32)
    noise = _rng(key, seed).standard_normal(shape) if len(shape) else np.float64(0.0)
    if key.endswith("running_var"):
        return (1.0 + 0.2 * np.abs(noise)).astype(np.float32)
    if key.endswith("running_mean"):
        return (0.1 * noise).astype(np.float32)
    if len(shape) >= 2:  # convolution or linear weight
        fan_in = int(np.prod(shape[1:]))
        return (noise * np.sqrt(1.6 / fan_in)).astype(np.float32)
    if key.endswith("weight"):  # normalisation scale
        return (1.0 + 0.1 * noise).astype(np.float32)
    return (0.1 * noise).astype(np.float32)  # bias


def episode(size, shot=1, batch=1, base_classes=15, seed=0, empty=False):
    """One batch of episodes: images, masks and labels, as NumPy arrays.

    With `empty` the last support mask of the first episode has no foreground at all.

    Returns a dict with
        query           float32 (batch, 3, size, size), already normalised
        support         float32 (batch, shot, 3, size, size)
        support_mask    int64   (batch, shot, size, size), values 0, 1 and 255
        query_mask      int64   (batch, size, size), values 0, 1 and 255
        base_mask       int64   (batch, size, size), values 0..base_classes and 255
        class_index     int64   (batch,), index of the episode's class among the base classes
    """
    rng = _rng(f"episode-{size}-{shot}-{batch}", seed)
    yy, xx = np.mgrid[0:size, 0:size]

    def blob():
        cy, cx = rng.uniform(0.3, 0.7, 2) * size
        ry, rx = rng.uniform(0.12, 0.35, 2) * size
        mask = (((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 <= 1).astype(np.int64)
        mask[: max(1, size // 30), :] = 255  # a strip to ignore
        return mask

    def smooth_image():
        coarse = rng.standard_normal((3, 8, 8))
        grid = np.linspace(0, 7, size)
        low = np.floor(grid).astype(int).clip(0, 6)
        frac = grid - low
        rows = coarse[:, low] * (1 - frac)[None, :, None] + coarse[:, low + 1] * frac[None, :, None]
        image = rows[:, :, low] * (1 - frac) + rows[:, :, low + 1] * frac
        return (image + 0.2 * rng.standard_normal((3, size, size))).astype(np.float32)

    query = np.stack([smooth_image() for _ in range(batch)])
    support = np.stack([np.stack([smooth_image() for _ in range(shot)]) for _ in range(batch)])
    support_mask = np.stack([np.stack([blob() for _ in range(shot)]) for _ in range(batch)])
    if empty:
        support_mask[0, -1] = np.where(support_mask[0, -1] == 1, 0, support_mask[0, -1])
    query_mask = np.stack([blob() for _ in range(batch)])
    class_index = rng.permutation(base_classes)[:batch].astype(np.int64)
    base_mask = np.where(query_mask == 1, (class_index + 1)[:, None, None], query_mask)
    other = np.stack([blob() for _ in range(batch)]) == 1
    other_class = rng.randint(1, base_classes + 1, size=batch)[:, None, None]
    base_mask = np.where(other & (base_mask == 0), other_class, base_mask)
    return dict(
        query=query,
        support=support,
        support_mask=support_mask,
        query_mask=query_mask,
        base_mask=base_mask,
        class_index=class_index,
    )
