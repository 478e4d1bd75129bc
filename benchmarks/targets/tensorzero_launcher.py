"""Starts the gateway embedded in the tensorzero package and writes where it listens; run by that package's own Python.

`tensorzero_launcher.py CONFIGURATION FILE`. Python sleeps afterwards; the gateway's threads are Rust's.
"""

from __future__ import annotations

import os
import signal
import sys
import types
import warnings

import tensorzero


def main(configuration: str, base_url_file: str) -> None:
    """Serves until SIGTERM."""
    warnings.simplefilter("ignore")  # the call is deprecated in favour of the container image
    client = types.SimpleNamespace()
    tensorzero.patch_openai_client(client, config_file=configuration, async_setup=False)
    with open(base_url_file + ".new", "w") as file:
        file.write(client.base_url)
    os.rename(base_url_file + ".new", base_url_file)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
