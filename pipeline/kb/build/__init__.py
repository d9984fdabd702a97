"""Builds a knowledge base; annotating does not import it."""
