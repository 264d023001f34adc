"""Sends events elsewhere: to a file, a webhook, an MQTT broker. A receiver that is away for a while loses none."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from detector.errors import InputError
from detector.extras import require
from detector.video.source import without_password

WAITING_EVENTS = 10_000
"""So many wait for a receiver that is away; then the oldest are dropped and counted."""
TIMEOUT_SECONDS = 2.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0
CLOSING_SECONDS = 2.0
MQTT_PORT = 1883


class Receiver(Protocol):
    """Where events go."""

    def send(self, row: dict[str, Any]) -> None:
        """Hands over one event. Raises: OSError: not now."""
        ...

    def close(self) -> None: ...


class Courier:
    """Delivers events in their order from a thread of its own, again and again until they are taken.

    Args:
        target: FILE.jsonl, http://..., https://..., or mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC.
        tell: is told when the receiver cannot be reached, and when it can be again.

    Raises:
        InputError: it is none of these, or cannot be opened.
    """

    def __init__(self, target: str, tell: Callable[[str], None] = lambda text: None) -> None:  # noqa: ARG005
        self.name = without_password(target)
        self.dropped = 0
        self._tell = tell
        self._reason = ""
        self._end = float("inf")  # time.monotonic() after which nothing is tried any more
        try:
            self._receiver = open_receiver(target)
        except ValueError as error:  # such as a port that is not a number
            raise InputError(f"--events {self.name}: {error}") from error
        self._rows: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, row: dict[str, Any]) -> None:
        """Takes an event; never waits."""
        with self._changed:
            if len(self._rows) == WAITING_EVENTS:
                self._rows.popleft()
                self.dropped += 1
            self._rows.append(row)
            self._changed.notify_all()

    def _run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._closing)
                if not self._rows:
                    return
                row = self._rows[0]
            try:
                self._receiver.send(row)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if not self._reason:
                    self._tell(f"{self.name}: not delivered ({error}); events wait")
                self._reason = str(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, wait)
                    if time.monotonic() + FIRST_WAIT_SECONDS > self._end:
                        return
                time.sleep(FIRST_WAIT_SECONDS if self._closing else 0)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                continue
            if self._reason:
                self._tell(f"{self.name}: delivered again")
            wait, self._reason = FIRST_WAIT_SECONDS, ""
            with self._changed:
                if self._rows and self._rows[0] is row:
                    self._rows.popleft()

    def close(self) -> str:
        """Delivers what waits, if that is quick; what is lost, as a sentence."""
        with self._changed:
            self._closing, self._end = True, time.monotonic() + CLOSING_SECONDS
            self._changed.notify_all()
        self._thread.join(CLOSING_SECONDS)
        lost = self.dropped + len(self._rows)
        self._receiver.close()
        return f"{self.name}: {lost} events could not be delivered ({self._reason})" if lost else ""


def open_receiver(target: str) -> Receiver:
    """Raises: InputError: it is none of a file, a webhook and a broker."""
    scheme = urlsplit(target).scheme
    if scheme in ("http", "https"):
        return _Webhook(target)
    if scheme == "mqtt":
        return _Broker(target)
    if scheme == "" and target.endswith(".jsonl"):
        return _File(Path(target))
    raise InputError(f"--events {without_password(target)}: expected FILE.jsonl, http(s)://... or mqtt://HOST/TOPIC")


class _File:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def send(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _KeepAddress(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a POST would become a GET without the event, and count as delivered."""

    def redirect_request(self, *_: Any) -> None:
        """No other request; the answer is an error then."""
        return


class _Webhook:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or any(character.isspace() for character in url):
            raise InputError(f"--events {without_password(url)}: expected http(s)://HOST/...")
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._headers = {"Content-Type": "application/json"}
        if parts.username:
            account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
        self._opener = urllib.request.build_opener(_KeepAddress)

    def send(self, row: dict[str, Any]) -> None:
        request = urllib.request.Request(self._url, json.dumps(row).encode(), self._headers)  # noqa: S310 (http, https)
        self._opener.open(request, timeout=TIMEOUT_SECONDS).close()

    def close(self) -> None:
        pass


class _Broker:
    """An event is delivered when the broker has acknowledged it (quality of service 1)."""

    def __init__(self, url: str) -> None:
        require("paho", "--events mqtt://", package="paho-mqtt")
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        parts = urlsplit(url)
        self._topic = parts.path.strip("/")
        if not parts.hostname or not self._topic or "+" in self._topic or "#" in url:
            raise InputError(f"--events {without_password(url)}: expected mqtt://HOST/TOPIC")
        self._host, self._port = parts.hostname, parts.port or MQTT_PORT
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.connect_timeout = TIMEOUT_SECONDS
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        self._client.reconnect_delay_set(1, round(LONGEST_WAIT_SECONDS))
        self._client.on_publish = self._acknowledge
        self._acknowledged: set[int] = set()
        self._changed = threading.Condition()
        self._started = False
        self._waiting: tuple[dict[str, Any], int] | None = None  # an event, and its message's number

    def _acknowledge(self, client: Any, data: Any, number: int, *_: Any) -> None:  # noqa: ARG002 (paho's call)
        with self._changed:
            self._acknowledged.add(number)
            self._changed.notify_all()

    def send(self, row: dict[str, Any]) -> None:
        if not self._started:
            self._client.connect(self._host, self._port, keepalive=10)
            self._client.loop_start()
            self._started = True
        if self._waiting is None or self._waiting[0] is not row:  # else the library sends it again by itself
            self._waiting = (row, self._client.publish(self._topic, json.dumps(row), qos=1).mid)
        number = self._waiting[1]
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._acknowledged, TIMEOUT_SECONDS):
                raise TimeoutError(f"{self._host} has not acknowledged an event")
            self._acknowledged.discard(number)
            self._waiting = None

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
