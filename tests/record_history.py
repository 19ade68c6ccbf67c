"""Record the history of a finished run for the replay test: `uv run python tests/record_history.py ID NAME [RUN_ID]`.

Takes the run from the server that `main.py` would use, and writes `tests/histories/NAME.json`. Of a run that continued
as new it takes the last part, or the one that is named.
"""

import asyncio
import json
import sys
from pathlib import Path

from temporalio.client import Client
from temporalio.envconfig import ClientConfig


async def record(id: str, name: str, run_id: str | None = None) -> None:
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    client = await Client.connect(**config)
    handle = client.get_workflow_handle(id, run_id=run_id)
    history = json.loads((await handle.fetch_history()).to_json(), object_hook=_impersonal)
    (Path(__file__).parent / "histories" / f"{name}.json").write_text(json.dumps(history, indent=1) + "\n")


def _impersonal(node: dict[str, object]) -> dict[str, object]:
    """Leave out what tells of the machine and plays no part in a replay."""
    if node.get("kind") == "TASK_QUEUE_KIND_STICKY":
        node["name"] = "sticky"
    return {key: value for key, value in node.items() if key not in ("identity", "stackTrace")}


asyncio.run(record(*sys.argv[1:]))
