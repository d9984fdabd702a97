"""A worker process of `LocalRunner`: Beam's own, without what it prints of itself.

python -m pipeline.engine.local_worker PID      PID gets SIGUSR1 if the worker dies
"""

import logging
import os
import signal
import sys

if __name__ == "__main__":
    worker = os.fork()
    if worker:
        _, status = os.waitpid(worker, 0)
        if status:
            os.kill(int(sys.argv[1]), signal.SIGUSR1)
        os._exit(0)
    logging.basicConfig(handlers=[logging.NullHandler()])  # before Beam, whose import would make one that prints
    logging.getLogger("apache_beam.runners.worker.sdk_worker_main").setLevel(logging.ERROR)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])
