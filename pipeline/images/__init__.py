"""Encoded pictures to sizes and pixels."""
