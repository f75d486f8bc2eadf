"""A cloud of declared speed: `python -m msao_compile.bench.cloud_process DEPLOYMENT SESSIONS PRIMITIVES`.

The server is that of `serve --role cloud`; its device alone waits until each piece of work has taken as long as the
primitives (JSON) say.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from msao_compile.bench.paced import SlowedDevice
from msao_compile.manifest.offload import Primitives
from msao_compile.runtime.cloud.service import CloudLimits
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer, run_until_signal
from msao_compile.runtime.serve.cloud.opening import open_deployment


def main(folder: str, sessions: str, primitives: str) -> None:
    """Serve until SIGTERM, after a line that tells the port, as `serve --json` writes it."""
    device = SlowedDevice("cloud", Primitives.model_validate_json(primitives))

    def announce(server: CloudServer) -> None:
        sys.stdout.write(json.dumps({"port": server.port}) + "\n")
        sys.stdout.flush()

    async def serve() -> None:
        _, served = open_deployment(Path(folder), None, CloudLimits(sessions=int(sessions)), device)
        await run_until_signal(CloudServer(served, CloudOptions()), announce)

    asyncio.run(serve())


if __name__ == "__main__":
    main(*sys.argv[1:])
