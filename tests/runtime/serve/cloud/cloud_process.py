"""A cloud server that answers as `Answering`, as a process of its own; its first line tells its ports."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from answering import INPUTS, Answering

from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer, run_until_signal
from msao_compile.runtime.serve.cloud.logs import log_as_json
from msao_compile.runtime.serve.cloud.served import Bounds, Served


def main(port: int, drain_s: float) -> None:
    options = replace(CloudOptions(), port=port, bounds=Bounds(drain_s=drain_s))
    server = CloudServer(Served("m", Answering().handle, INPUTS), options)
    log_as_json()
    asyncio.run(run_until_signal(server, lambda ready: print(json.dumps([ready.port, ready.http_port]), flush=True)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    main(int(sys.argv[1]), float(sys.argv[2]))
