"""A set for people: why a row ended as it did, and the data card."""
