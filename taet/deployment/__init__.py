"""Use of a finished run: predictions for new images, and files that run without this package."""

from taet.deployment.export import export
from taet.deployment.predict import predict
from taet.deployment.predictions import Predictions

__all__ = ["Predictions", "export", "predict"]
