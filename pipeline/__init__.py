"""Image-text pairs -> annotations -> an Image-to-Entities set."""

import contextlib
import logging
import os

# TensorFlow and Beam greet each start with lines that no user can act on; errors must stand alone on stderr.
# TensorFlow reads and writes files here and computes nothing, so its kernels may be the plain ones.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
# A stage's error is logged with a traceback here, and raised as well: the command says it in its own words.
logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)

# flair brings torch, and torch brings triton, whose LLVM aborts the process if TensorFlow's was loaded before it.
with contextlib.suppress(ImportError):  # absent where torch has no CUDA
    import triton  # noqa: F401
