"""Published models as encoders: one file per family, and one exporter, which holds no model code.

A family's file reads a model's own files into `Parts`; `to_jax` turns the torch modules in them into JAX functions by
torchax. The command is `trainer.import_encoder`.
"""
