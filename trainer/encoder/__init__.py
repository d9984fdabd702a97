"""Encoders on disk. This package exports their reader; the writer is `trainer.encoder.write`."""

from trainer.encoder.format import Classifier
from trainer.encoder.preprocessing import Preprocessing
from trainer.encoder.read import Encoder, Prediction, is_whole

__all__ = ["Classifier", "Encoder", "Prediction", "Preprocessing", "is_whole"]
