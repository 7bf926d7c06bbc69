"""``python -P guarded_uvicorn.py module:app --app-dir FOLDER ...``: uvicorn, where blocking calls of our code raise.

The application is imported before, as imports read files.
"""

import sys

import uvicorn
from blockbuster import BlockBuster
from uvicorn.importer import import_from_string

if __name__ == "__main__":
    app = sys.argv[1]
    sys.path.insert(0, sys.argv[sys.argv.index("--app-dir") + 1])
    import_from_string(app)
    guard = BlockBuster(["openviper", app.partition(":")[0].partition(".")[0]])
    for function in guard.functions.values():
        function.can_block_in("coverage/collector.py", {"lock_data"})
        # Litestar moves an upload from memory into a file on the event loop.
        function.can_block_in("litestar/datastructures/upload_file.py", {"write"})
        # asyncpg itself looks for certificates and passwords in files when it connects.
        function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args", "_dot_postgresql_path"})
    guard.activate()
    uvicorn.main()
