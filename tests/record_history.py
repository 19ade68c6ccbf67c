"""Record the history of a finished run for the replay test: `uv run python tests/record_history.py ID NAME`.

Takes the run from the server that `main.py` would use, and writes `tests/histories/NAME.json`.
"""

import asyncio
import sys
from pathlib import Path

from temporalio.client import Client
from temporalio.envconfig import ClientConfig


async def record(run_id: str, name: str) -> None:
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    client = await Client.connect(**config)
    history = await client.get_workflow_handle(run_id).fetch_history()
    (Path(__file__).parent / "histories" / f"{name}.json").write_text(history.to_json() + "\n")


asyncio.run(record(*sys.argv[1:]))
