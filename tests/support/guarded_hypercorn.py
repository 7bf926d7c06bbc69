"""``python -P guarded_hypercorn.py module:app --app-dir FOLDER --port PORT``: hypercorn, guarded as uvicorn is."""

import asyncio
import importlib
import sys

from blockbuster import BlockBuster
from hypercorn.asyncio import serve
from hypercorn.config import Config

if __name__ == "__main__":
    name, _, attribute = sys.argv[1].partition(":")
    sys.path.insert(0, sys.argv[sys.argv.index("--app-dir") + 1])
    app = getattr(importlib.import_module(name), attribute)
    guard = BlockBuster(["openviper", name])
    for function in guard.functions.values():
        function.can_block_in("coverage/collector.py", {"lock_data"})
    guard.activate()
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[sys.argv.index('--port') + 1]}"]
    asyncio.run(serve(app, config))  # until SIGTERM
