"""``python -m worker``: run a worker, set up by the environment, until SIGTERM or SIGINT."""

import logging
import os

from worker.main import main

if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not sys.exit: that waits for every thread, and a run that lost its job to another worker
    # is parked in one until that job ends.
    os._exit(status)
