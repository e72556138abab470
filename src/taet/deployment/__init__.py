"""Use of a finished run: predictions for new images, files that run without this package, and
publishing."""

from taet.deployment.export import export
from taet.deployment.predict import Predictions, predict
from taet.deployment.trained_model import TrainedModel, load

__all__ = ["Predictions", "TrainedModel", "export", "load", "predict"]
