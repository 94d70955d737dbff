"""A cache of the features of supports, within a limit of memory."""

from collections import OrderedDict
from collections.abc import Hashable

from model.features import SupportFeatures, feature_bytes


class FeatureCache:
    """The features that were used last, as many as fit.

    Args:
        limit: The limit in bytes. Features that are larger are not kept.

    Attributes:
        hits: How often `get` found something.
        misses: How often it did not.
    """

    def __init__(self, limit: float):
        self.limit = self._free = limit
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, SupportFeatures] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> SupportFeatures | None:
        """Return what was put under the key, if it was not dropped since."""
        if key not in self._kept:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: Hashable, features: SupportFeatures) -> None:
        """Keep features under a new key; those that were not used for longest are dropped for them."""
        size = feature_bytes(features)
        if size <= self.limit:
            self._kept[key] = features
            self._free -= size
            while self._free < 0:
                _, dropped = self._kept.popitem(last=False)
                self._free += feature_bytes(dropped)
