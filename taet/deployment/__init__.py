"""Use of a finished run: predictions for new images, files that run without this package, and publishing."""

from taet.deployment.export import export
from taet.deployment.predict import Predictions, predict

__all__ = ["Predictions", "export", "predict"]
