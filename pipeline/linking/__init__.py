"""From candidates to the entity that is meant, or none: evidence, weights, probabilities."""
