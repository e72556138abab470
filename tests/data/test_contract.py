"""What every data set keeps to, also one that is added later; those whose files are not there are
skipped."""

import numpy as np
import pytest

from taet import registry
from taet.data import DataFacts, facts, load
from taet.data.sources import PATH_SOURCES
from taet.errors import UserError
from taet.settings import Data

SETTINGS = [{}, {"validation": 0.2}, {"imbalance_ratio": 3.0}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", sorted(registry.entries("data").keys() - set(PATH_SOURCES)))
def test_a_data_set(name: str, settings: dict[str, float]) -> None:
    try:
        one, again = load(name, **settings), load(name, **settings)
    except UserError as error:
        if "taet data prepare" in str(error):
            pytest.skip(f"{name}: its files are not here")
        raise
    assert len(one.class_names) == one.num_classes == len(one.class_counts)
    assert one.image_shape[0] in (1, 3)
    assert ("validation" in one.splits) == ("validation" in settings)
    for split, copy in zip(one.splits.values(), again.splits.values(), strict=True):
        assert split.images.dtype == np.uint8
        assert split.images.ndim == 4
        assert split.labels.dtype == np.int64
        assert len(split.images) == len(split.labels) > 0
        assert set(np.unique(split.labels)) <= set(range(one.num_classes))
        assert split.manifest() == copy.manifest()
    assert one.train.class_counts.min() > 0
    known = facts(Data(name=name, **settings))
    assert known is None or known == DataFacts.of(one.splits, one.image_shape)
