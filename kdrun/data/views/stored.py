"""Views that are the same in all runs."""

from typing import Any

from torch import Tensor

from kdrun.core.seeding import generator
from kdrun.data.views.view import Recipe, join, take


class StoredViews:
    """K weak views of every training image, the same in all runs: a fixed draw for each image and number.

    Args:
        count: K.
    """

    NAME = "weak"

    def __init__(self, recipe: Recipe, num_train: int, count: int) -> None:
        self.recipe = recipe
        self.num_train = num_train
        self.count = count
        drawn = [recipe.draw(generator(0, "stored views", self.NAME, k), num_train) for k in range(count)]
        self._params = join(drawn)

    def params(self, index: Tensor, replay: Tensor) -> Any:
        """What was drawn for the views `replay` of the images `index`, both (B,) int64 on the CPU."""
        return take(self._params, replay * self.num_train + index)
