"""The versions of a project's graphs as this process works them out: `python -m holdfast.server.versions`.

`holdfast doctor` compares them with its own. A graph whose version is another one in every process leaves runs behind
that nobody can ever go on with.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

from holdfast.contracts.errors import HoldfastError
from holdfast.server.catalog import Catalog, read_catalog

_PATIENCE_SECONDS = 60.0


def versions(catalog: Catalog) -> Mapping[str, str]:
    """The version of each graph that can be loaded."""
    found: dict[str, str] = {}
    for name in catalog:
        with suppress(HoldfastError):
            found[name] = catalog.load(name).governance.version
    return found


async def versions_elsewhere() -> Mapping[str, str]:
    """The same, as a new process of this project works them out; empty where it does not answer in time."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        env=os.environ | {"PYTHONHASHSEED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return {}
    # What the modules of the graphs print as they are imported comes first.
    return dict(json.loads(said.splitlines()[-1])) if process.returncode == 0 and said else {}


if __name__ == "__main__":
    print(json.dumps(versions(read_catalog())))  # noqa: T201  # it is what was asked for
