"""A pandas frame that is printed as a reader of a table expects it."""

from typing import Any

import pandas as pd


class WholeFrame(pd.DataFrame):
    """A frame that is printed with all of its columns, on several lines where they need these.

    A terminal of 80 letters would otherwise have an ellipsis in the place of most columns.
    """

    @property
    def _constructor(self) -> Any:
        return WholeFrame

    def __repr__(self) -> str:
        with pd.option_context("display.max_columns", None):
            return super().__repr__()

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_columns", None):
            html: str | None = super()._repr_html_()
        return html
