"""A builder that ends its process, or never ends; `MMCOMPILE_TEST_FATE` says how."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

__version__ = "1.7.0"


class ILogger:
    def __init__(self):
        pass


class Builder:
    def __init__(self, logger):
        fate = os.environ["MMCOMPILE_TEST_FATE"]
        print("a library that prints on standard output", flush=True)
        if fate == "abort":
            logger.log(1, "the last error")
            print("terminate called without an active exception", file=sys.stderr, flush=True)
            os.abort()
        elif fate == "fault":
            ctypes.string_at(0)
        elif fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate == "exit":
            os._exit(3)
        elif fate == "sleep":
            Path(os.environ["MMCOMPILE_TEST_MARK"]).write_text(str(os.getpid()))
            time.sleep(600)
        raise RuntimeError("no builder after all")
