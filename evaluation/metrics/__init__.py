"""Metrics as plain functions of arrays, also of arrays that are larger than memory."""
