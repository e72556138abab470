"""Training: the loop, the step, and the run folder."""

from taet.training.train import TrainingResult, resume, train

__all__ = ["TrainingResult", "resume", "train"]
