"""The formats of others that encoders of this trainer are written in."""
