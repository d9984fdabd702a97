"""What the picture says of the candidates of a mention, where the text leaves doubt."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pipeline.config import DisambiguateConfig
from pipeline.linking.choice import choose, softmax_with_nil
from pipeline.linking.evidence import PLACE
from pipeline.linking.weights import Weights
from pipeline.schema import LinkedMention

PICTURE = ("picture", "compared")  # the evidence that this module adds
NUM_SAMPLES = 512  # entities of the base that similarities are measured against (ours)


def in_doubt(linked: LinkedMention, config: DisambiguateConfig, weights: Weights) -> bool:
    """Returns whether the text leaves open what `linked` means, so that the picture is asked.

    It does where the candidates together have at least the probability `config.doubt_min`, and no answer, NIL included,
    has `config.doubt_max`. Weights without one for the picture never ask it.
    """
    if not linked.candidates or not weights.sees_pictures:
        return False
    scores = [candidate.score for candidate in linked.candidates]
    together = math.fsum(scores)
    return together >= config.doubt_min and max(1 - together, *scores) < config.doubt_max


def answer_by_picture(linked: LinkedMention, of_sample: np.ndarray, *, weights: Weights) -> LinkedMention:
    """Returns `linked` chosen again, with what the picture says among the evidence.

    Args:
        linked: its candidates have evidence and similarities.
        of_sample: float `[n]`, cosines of the picture and a sample of the base's entities.
        weights: of the evidence.
    """
    evidence = np.array([candidate.evidence for candidate in linked.candidates])
    similarities = np.array([one.similarity for one in linked.candidates])
    evidence[:, PLACE["picture"]] = standing_out(similarities, of_sample)
    evidence[:, PLACE["compared"]] = 1.0
    shares = softmax_with_nil(evidence @ np.array(weights.of_evidence) + weights.bias)
    answer = choose(linked, evidence.tolist(), shares.tolist(), weights.probability_min)
    return dataclasses.replace(answer, by_text=linked.chosen)


def standing_out(similarities: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
    """Returns by how many standard deviations of `of_sample` each similarity exceeds its mean; 0 where it does not.

    Cosines are offset and spread differently by every encoder, and for every picture. Below the mean they say nothing
    more: a picture is not the less like an entity.

    Args:
        similarities: float `[candidates]`, cosines of a picture and the candidates.
        of_sample: float `[n]`, cosines of the same picture and other entities.
    """
    spread = float(of_sample.std())
    if spread == 0.0:  # there is one entity, or the encoder tells none apart
        return np.zeros_like(similarities)
    return np.asarray(np.maximum((similarities - of_sample.mean()) / spread, 0.0))
