"""Features of supports that were computed before, as many as memory is given for."""

from collections import OrderedDict
from collections.abc import Hashable

from model.features import SupportFeatures, feature_bytes


class FeatureCache:
    """Keeps features until those used last fill the limit.

    Args:
        limit: bytes; what does not fit at all is not kept.

    Attributes:
        hits, misses: how often `get` found something, and how often not.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, tuple[SupportFeatures, int]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> SupportFeatures | None:
        """What was put under the key, if it is still there."""
        if key not in self._kept:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, features: SupportFeatures) -> None:
        """Keep features, in the place of those that were not used for longest. The key is new."""
        size = feature_bytes(features)
        if size > self.limit:
            return
        self._kept[key] = features, size
        self._bytes += size
        while self._bytes > self.limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
