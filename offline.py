"""What stands in for remote services on this machine: a demo model, sample data, and Temporal's dev server.

The model and the data are a demo, over real HTTP on loopback. The model only looks for city names and a few words; the
figures are a fixed sample. The dev server is a real Temporal server, which the runs of this folder share.

The rest of the program does not know the difference, and runs without a key, a network and a Temporal of your own.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# ── The model and the data ───────────────────────────────────────────────────────────────────────────────

NOTICE = "OFFLINE DEMO: the model is a small rule-based stand-in and the data is a fixed sample."

SECONDS_PER_TOKEN = 0.01

# name: country, latitude, longitude, timezone, population, temperature in °C, WMO weather code, wind in km/h
CITIES: dict[str, tuple[str, float, float, str, int | None, float, int, float]] = {
    "Beijing": ("China", 39.9075, 116.3972, "Asia/Shanghai", 18960744, 21.4, 1, 9.7),
    "Berlin": ("Germany", 52.5244, 13.4105, "Europe/Berlin", 3426354, 14.8, 61, 17.6),
    "Cairo": ("Egypt", 30.0626, 31.2497, "Africa/Cairo", 9606916, 31.2, 0, 14.0),
    "Delhi": ("India", 28.6519, 77.2315, "Asia/Kolkata", 10927986, 33.5, 2, 8.3),
    "Istanbul": ("Türkiye", 41.0138, 28.9497, "Europe/Istanbul", 15701602, 22.7, 1, 19.1),
    "Lagos": ("Nigeria", 6.4541, 3.3947, "Africa/Lagos", 15388000, 28.9, 80, 11.5),
    "London": ("United Kingdom", 51.5085, -0.1257, "Europe/London", 8961989, 12.3, 3, 15.8),
    "Los Angeles": ("United States", 34.0522, -118.2437, "America/Los_Angeles", 3898747, 22.5, 0, 9.4),
    "Mexico City": ("Mexico", 19.4285, -99.1277, "America/Mexico_City", 12294193, 19.8, 95, 7.2),
    "Moscow": ("Russia", 55.7522, 37.6156, "Europe/Moscow", 10381222, 4.6, 71, 12.9),
    "Mumbai": ("India", 19.0728, 72.8826, "Asia/Kolkata", 12691836, 30.1, 63, 16.4),
    "New York": ("United States", 40.7143, -74.006, "America/New_York", 8804190, 17.2, 2, 13.3),
    "Paris": ("France", 48.8534, 2.3488, "Europe/Paris", 2138551, 15.1, 51, 10.8),
    "São Paulo": ("Brazil", -23.5475, -46.6361, "America/Sao_Paulo", 12400232, 24.6, 81, 8.8),
    "Sydney": ("Australia", -33.8678, 151.2073, "Australia/Sydney", 5557233, 18.9, 1, 21.3),
    "Tokyo": ("Japan", 35.6895, 139.6917, "Asia/Tokyo", 9733276, 18.4, 2, 12.1),
    "Vostok Station": ("Antarctica", -78.4645, 106.8339, "Antarctica/Vostok", None, -62.7, 77, 24.5),
}

Part = dict[str, Any]
"""One part of the gateway's stream, as it goes over the wire."""


# ── The demo model ───────────────────────────────────────────────────────────────────────────────────────


async def demo_model(body: dict[str, Any]) -> AsyncIterator[Part]:
    """Call the tools for the cities in the query; when their results are there, write the answer from them."""
    prompt: list[dict[str, Any]] = body["prompt"]
    turn = [message for message in prompt if message["role"] != "system"]
    query = " ".join(part["text"] for part in turn[0]["content"] if part["type"] == "text")
    results = [part for message in turn if message["role"] == "tool" for part in message["content"]]
    yield {"type": "stream-start", "warnings": []}
    if calls := [] if results else _calls(query, [tool["name"] for tool in body.get("tools", ())]):
        for i, (name, city) in enumerate(calls, 1):
            for part in tool_call(f"call_{i}", name, {"city": city}):
                yield part
        text, reason = "", "tool-calls"
    else:
        asked = {
            part["toolCallId"]: part["input"]
            for message in turn
            if message["role"] == "assistant"
            for part in message["content"]
            if part["type"] == "tool-call"
        }
        text, reason = _answer(results, asked), "stop"
        yield {"type": "text-start", "id": "1"}
        for token in re.findall(r"\s*\S+", text):
            await asyncio.sleep(SECONDS_PER_TOKEN)
            yield {"type": "text-delta", "id": "1", "delta": token}
        yield {"type": "text-end", "id": "1"}
    yield finish(reason, tokens_in=len(json.dumps(body)) // 4, tokens_out=len(text) // 4 + 20 * len(calls))


def tool_call(id: str, name: str, arguments: object) -> Iterator[Part]:
    """The parts of one tool call: streamed, then whole. Arguments that are a string go out as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    yield {"type": "tool-input-start", "id": id, "toolName": name}
    yield {"type": "tool-input-delta", "id": id, "delta": text}
    yield {"type": "tool-input-end", "id": id}
    yield {"type": "tool-call", "toolCallId": id, "toolName": name, "input": text}


def finish(reason: str, tokens_in: int = 0, tokens_out: int = 0) -> Part:
    """The part that ends a stream."""
    usage = {"inputTokens": {"total": tokens_in}, "outputTokens": {"total": tokens_out}}
    return {"type": "finish", "finishReason": {"unified": reason}, "usage": usage}


def _calls(query: str, tools: list[str]) -> list[tuple[str, str]]:
    wanted = []
    if re.search(r"\b(weather|temperature|warm|cold|hot|rain|snow|sun|wind|forecast)", query, re.I):
        wanted.append("get_weather")
    if re.search(r"\b(population|people|inhabitants|big|large|lives?\b)", query, re.I):
        wanted.append("get_population")
    wanted = wanted or ["get_weather", "get_population"]
    return [(name, city) for city in _cities(query) for name in wanted if name in tools]


def _cities(query: str) -> list[str]:
    found = {}
    for city in CITIES:
        if match := re.search(rf"\b{re.escape(city)}\b", query, re.I):
            found[match.start()] = city
            query = query[: match.start()] + " " * len(city) + query[match.end() :]
    # Anything else in a place for a name and written like one: the tools will say whether it exists.
    name = r"[^\W\d_a-z][\w'.-]*"
    for match in re.finditer(rf"(?:\b(?:in|of|for|at|about|and|or|has|is)\s|,)\s*({name}(?:\s{name})*)", query):
        found[match.start(1)] = match[1].rstrip(".")
    return [city for _, city in sorted(found.items())]


def _answer(results: list[dict[str, Any]], asked: dict[str, dict[str, Any]]) -> str:
    if not results:
        return (
            "I am a demo model: I only know how to look up the weather and the population of a city. "
            "Name one, for example: What is the weather in Tokyo?"
        )
    lines: dict[str, list[str]] = {}
    for result in results:
        city = str(asked.get(result["toolCallId"], {}).get("city", "?"))
        value = result["output"]["value"]
        facts = lines.setdefault(city, [])
        if result["output"]["type"] == "error-text":
            facts.append(re.sub(r"^\w+: \w+ failed: ", "", str(value)))
        elif "temperature" in value:
            facts.append(f"{value['temperature']}, {value['conditions']}, wind {value['wind']}")
        elif "population" in value:
            facts.append(f"population {value['population']:,}")
        else:
            facts.append(json.dumps(value))
    return "\n".join(f"{city}: {'; '.join(dict.fromkeys(facts))}." for city, facts in lines.items())


# ── The services ─────────────────────────────────────────────────────────────────────────────────────────


def gateway_error(status: int, type: str, message: str) -> JSONResponse:
    """An error in the AI Gateway's format."""
    return JSONResponse({"error": {"message": message, "type": type}}, status)


def stream(parts: AsyncIterator[Part]) -> StreamingResponse:
    """Server-sent events, in the AI Gateway's format."""

    async def lines() -> AsyncIterator[str]:
        async for part in parts:
            yield f"data: {json.dumps(part)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def language_model(request: Request) -> Response:
    if not request.headers.get("authorization", "").removeprefix("Bearer").strip():
        return gateway_error(401, "authentication_error", "no API key")
    if not request.headers.get("ai-language-model-id"):
        return gateway_error(400, "invalid_request_error", "no ai-language-model-id")
    return stream(demo_model(await request.json()))


async def geocoding(request: Request) -> Response:
    query = request.query_params
    if "name" not in query:
        return _open_meteo_error("Parameter 'name' must be set.")
    matches = [name for name in CITIES if query["name"].strip().casefold() == name.casefold()]
    results = []
    for name in matches[: int(query.get("count", 10))]:
        country, latitude, longitude, timezone, population, *_ = CITIES[name]
        place = {"name": name, "country": country, "latitude": latitude, "longitude": longitude, "timezone": timezone}
        results.append(place if population is None else {**place, "population": population})
    return JSONResponse({"results": results, "generationtime_ms": 0.1} if results else {"generationtime_ms": 0.1})


async def forecast(request: Request) -> Response:
    try:
        at = float(request.query_params["latitude"]), float(request.query_params["longitude"])
    except (KeyError, ValueError):
        return _open_meteo_error("Parameters 'latitude' and 'longitude' must be numbers.")
    for _, latitude, longitude, _, _, temperature, code, wind in CITIES.values():
        if at == (latitude, longitude):
            units = {"time": "iso8601", "temperature_2m": "°C", "weather_code": "wmo code", "wind_speed_10m": "km/h"}
            values = {"temperature_2m": temperature, "weather_code": code, "wind_speed_10m": wind}
            asked = request.query_params.get("current", "").split(",")
            return JSONResponse(
                {
                    "latitude": latitude,
                    "longitude": longitude,
                    "current_units": {k: v for k, v in units.items() if k == "time" or k in asked},
                    "current": {"time": "2026-01-01T12:00", **{k: v for k, v in values.items() if k in asked}},
                }
            )
    return _open_meteo_error("No sample data for these coordinates.")


def _open_meteo_error(reason: str) -> JSONResponse:
    return JSONResponse({"error": True, "reason": reason}, 400)


ROUTES = [
    Route("/v3/ai/language-model", language_model, methods=["POST"]),
    Route("/v1/search", geocoding),
    Route("/v1/forecast", forecast),
]


@contextmanager
def serve(routes: list[Route] = ROUTES) -> Iterator[str]:
    """Serve both services on a free loopback port, in a thread of their own, while the body runs.

    Yields:
        The base URL, `http://127.0.0.1:PORT`.
    """
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    # Set by hand, since asyncio passes over a socket made without naming TCP: answers would come 40 ms late.
    sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets[0].listen()  # connections wait from now on, so there is no need to wait for the thread
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(1)  # a stream that somebody reads may hold it for longer; the port is closed


def environment(url: str) -> dict[str, str]:
    """The environment that sends model and tools to the stand-ins at `url`."""
    return {
        "AI_GATEWAY_API_KEY": "offline-demo",
        "AI_GATEWAY_BASE_URL": f"{url}/v3/ai",
        "OPEN_METEO_GEOCODING_URL": f"{url}/v1/search",
        "OPEN_METEO_FORECAST_URL": f"{url}/v1/forecast",
        # A proxy that is set for the outside world cannot reach this process.
        "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"])),
    }


# ── Temporal's dev server ────────────────────────────────────────────────────────────────────────────────

PORT, UI_PORT = 7233, 8233
STATE = Path(__file__).resolve().parent / ".temporal"
START_SECONDS, STOP_SECONDS = 30, 5


class CannotServe(Exception):
    """There can be no dev server here. The message says why, and what to do."""


class DevServer:
    """The dev server that the runs of this folder share when no other server is named.

    The first run starts it, the last one stops it. Three locks keep the books, and since the system drops a lock
    with the process that holds it, a killed run leaves nothing wrong behind: `start.lock` is held while somebody
    starts or stops the server, `users.lock` is shared by the runs that use it, and `server.lock` is held by the
    server itself, through the file that it inherits.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._users: IO[str] | None = None

    def enter(self) -> bool:
        """Use the server: start it unless it runs. Returns False if another Temporal server may have the port.

        Raises:
            CannotServe: The folder for the server's files cannot be written, or there is no `temporal`.
        """
        try:
            STATE.mkdir(exist_ok=True)
            with self._lock("start.lock"):
                if not self._running() and answers(PORT):
                    return False
                self._users = (STATE / "users.lock").open("a")
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self.ensure_running()
                return True
        except OSError as error:
            raise CannotServe(
                f"cannot keep the Temporal server's files in {STATE}: {error.strerror or error}"
            ) from error

    def ensure_running(self) -> None:
        """Start the server unless it runs, for one who holds `start.lock`.

        Raises:
            CannotServe: There is no `temporal` command.
        """
        if self._running():
            return
        binary = find_temporal()
        if binary is None:
            raise CannotServe("there is no `temporal` command: run `uv sync`, or name a server in TEMPORAL_ADDRESS")
        command = [
            *(binary, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(PORT), "--ui-port", str(UI_PORT)),
            *("--db-filename", str(STATE / "temporal.db"), *SERVER_SETTINGS),
            *("--namespace", self._namespace),
        ]
        if not (STATE / "complete").exists():
            # A server that is killed while it makes its tables can never be started on them again.
            for file in STATE.glob("temporal.db*"):
                file.unlink()
        pid_file = STATE / "server.pid"
        pid_file.unlink(missing_ok=True)
        with (STATE / "server.lock").open("a") as lock, (STATE / "server.log").open("w") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.Popen(
                # The shell writes the id down before it becomes the server, so that no kill of this process can
                # leave a server that nobody knows how to stop.
                ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(pid_file), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for this process, not for the server
            )

    def leave(self) -> None:
        """Stop the server, unless another run uses it."""
        if self._users is None:
            return
        with self._lock("start.lock"), self._users as users:
            self._users = None
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            since = time.monotonic()
            while self._running():
                patient = time.monotonic() - since < STOP_SECONDS
                with suppress(OSError, ValueError):  # the id is not written yet, or the process gone already
                    pid = int((STATE / "server.pid").read_text())
                    os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
                time.sleep(0.02)

    async def ready[T](self, connect: Callable[[], Awaitable[T]]) -> T:
        """Connect to the server as soon as it can be used.

        Args:
            connect: Tried again and again, since a server that is just starting, or is killed, has many ways to fail.

        Raises:
            CannotServe: It ended, and again when it was started again.
            Exception: What `connect` raises of a server that had its time.
        """
        since, answered, restarted = time.monotonic(), False, False
        while True:
            try:
                client = await connect()
                (STATE / "complete").touch()  # the database is whole
                return client
            except Exception as error:
                if why := self.why_stopped():
                    if restarted:
                        raise CannotServe(f"the Temporal server did not start: {why}") from error
                    since, answered, restarted = time.monotonic(), False, True  # it may have been killed by somebody
                    self.start_again()
                elif not answered and answers(PORT):
                    since, answered = time.monotonic(), True  # it makes its namespace a moment after it opens its port
                if time.monotonic() - since > (5 if answered else START_SECONDS):
                    raise
            await asyncio.sleep(0.02)

    def start_again(self) -> None:
        """Start the server if it is gone: the runs are in its database and go on."""
        with self._lock("start.lock"):
            if self._users is not None:  # a thread that does this may be late, and `leave()` done
                self.ensure_running()

    async def keep_running(self) -> None:
        while True:
            await asyncio.sleep(1)
            await asyncio.to_thread(self.start_again)

    def why_stopped(self) -> str | None:
        """None while the server runs; otherwise the last thing it said."""
        if self._running():
            return None
        lines = (STATE / "server.log").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {STATE / 'server.log'})"

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (STATE / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _running(self) -> bool:
        with (STATE / "server.lock").open("a") as file:
            try:
                # The server holds it exclusively; asking for a share keeps two who ask out of each other's way.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


SERVER_SETTINGS = [
    *("--log-level", "warn"),
    # By default the dev server waits 50 ms before every workflow task.
    *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=10000"),
    # Survives a killed process, for a third of the time of the default.
    *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"),
]


def find_temporal() -> str | None:
    # The venv's own first: `uv run` puts it on the PATH, calling the venv's Python does not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("temporal", path=path)


def answers(port: int) -> bool:
    """Whether somebody listens on this port of the machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@asynccontextmanager
async def dev_server[T](namespace: str, connect: Callable[[], Awaitable[T]]) -> AsyncIterator[T]:
    """Have a dev server on `PORT` while the body runs, started again whenever it is gone.

    Args:
        namespace: A namespace for it to have, besides the default one.
        connect: Makes a client, which is yielded. Tried again while the server starts.

    Raises:
        CannotServe: There can be none.
        Exception: What `connect` raises of a server that had its time.
    """
    if sys.platform == "win32":
        async with _downloaded_server(namespace):
            yield await connect()
        return
    server = DevServer(namespace)
    if not server.enter():  # that is somebody else's
        yield await connect()
        return
    keeper = None
    try:
        client = await server.ready(connect)
        keeper = asyncio.create_task(server.keep_running())
        yield client
    finally:
        if keeper:
            keeper.cancel()
        server.leave()


@asynccontextmanager
async def _downloaded_server(namespace: str) -> AsyncIterator[None]:
    """The dev server where there is no wheel and no file locks (Windows): not shared, and downloaded if need be."""
    from temporalio.testing import WorkflowEnvironment

    if answers(PORT):
        yield
        return
    STATE.mkdir(exist_ok=True)
    try:
        environment = await WorkflowEnvironment.start_local(
            namespace=namespace,
            port=PORT,
            ui=True,
            ui_port=UI_PORT,
            dev_server_existing_path=find_temporal(),
            dev_server_database_filename=str(STATE / "temporal.db"),
            dev_server_extra_args=SERVER_SETTINGS[2:],
        )
    except RuntimeError as error:
        raise CannotServe(f"no Temporal server, and none can be downloaded: {error}") from error
    async with environment:
        yield
