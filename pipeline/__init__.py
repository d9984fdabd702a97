"""Image-text pairs -> annotations -> an Image-to-Entities set."""

import contextlib
import logging
import os

# TensorFlow and Beam print lines at each start that no user can act on; only errors should go to stderr.
# TensorFlow only reads and writes files here, so it needs no optimised kernels.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
# Beam logs a stage's error with a traceback, and raises it as well: the command reports it in one line.
logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)

# flair brings torch, and torch brings triton, whose LLVM aborts the process if TensorFlow's was loaded before it.
with contextlib.suppress(ImportError):  # absent where torch has no CUDA
    import triton  # noqa: F401
