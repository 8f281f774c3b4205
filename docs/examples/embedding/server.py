"""A web server that trains and streams its events: `python server.py PICTURES`, then open http://127.0.0.1:8000.

`GET /events` is a stream of server-sent events, from the first one or after `Last-Event-ID`; `POST /pause`, `/resume`,
`/sample`, `/save` and `/stop` ask for it. It needs nothing beside lorakit. It answers to this machine only; put it
behind a server that knows its users before others may reach it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from lorakit import Control, Event, Kit, LorakitError, Plan
from lorakit.events import VERBS, Verb

PAGE = """<!doctype html><title>lorakit</title><p>
<button>pause</button> <button>resume</button> <button>sample</button> <button>save</button> <button>stop</button>
<pre></pre><script>
const shown = document.querySelector("pre")
for (const one of document.querySelectorAll("button"))
  one.onclick = () => fetch("/" + one.textContent, {method: "POST", headers: {"X-Lorakit": "1"}})
const stream = new EventSource("/events")
stream.onmessage = (told) => { shown.prepend(told.data + "\\n") }
stream.addEventListener("end", () => stream.close())
</script>"""
ASKS: dict[str, Verb] = {f"/{verb}": verb for verb in VERBS}
STATUS = {200: "OK", 202: "Accepted", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


class Server:
    """One run, and everybody who follows it."""

    def __init__(self, kit: Kit, plan: Plan) -> None:
        self.kit, self.plan, self.control = kit, plan, Control()
        self.lines: list[str] = []  # every event so far, for those who come late
        self.more = asyncio.Condition()
        self.over = False

    async def train(self) -> None:
        """Carry the plan out in a thread, and let everybody know of each event."""
        loop, failed = asyncio.get_running_loop(), ""

        def work() -> None:
            for event in self.kit.train(self.plan, self.control):
                asyncio.run_coroutine_threadsafe(self.tell(event), loop).result()

        try:
            await asyncio.to_thread(work)
        except asyncio.CancelledError:
            self.control.stop("the server ends")
            raise
        except LorakitError as error:
            failed = str(error)
        finally:
            async with self.more:
                self.over = True
                self.more.notify_all()
        if failed:
            print(f"error: {failed}", file=sys.stderr)

    async def tell(self, event: Event) -> None:
        """Keep an event, and wake whoever waits for it."""
        async with self.more:
            self.lines.append(event.to_json())
            self.more.notify_all()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close."""
        try:
            method, path, _ = (await reader.readline()).decode("ascii").split()
            headers: dict[str, str] = {}
            while (line := (await reader.readline()).decode("latin-1").strip()) and len(headers) < 100:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            if (method, path) == ("GET", "/events"):
                await self.stream(writer, headers.get("last-event-id", ""))
            elif (method, path) == ("GET", "/"):
                self.reply(writer, 200, PAGE, "text/html")
            elif method == "POST" and "x-lorakit" not in headers:  # no page of another site can send it
                self.reply(writer, 403, "the header X-Lorakit is missing\n")
            elif method == "POST" and path in ASKS:
                refused = self.control.ask(ASKS[path], by="the web")
                self.reply(writer, 409 if refused else 202, f"{refused or 'taken'}\n")
            else:
                self.reply(writer, 404, "there is no such thing\n")
            await writer.drain()
        except (ValueError, ConnectionError):
            pass  # no HTTP, or nobody there any more
        finally:
            writer.close()

    def reply(self, writer: asyncio.StreamWriter, code: int, text: str, kind: str = "text/plain") -> None:
        """Write a whole answer."""
        body = text.encode()
        head = f"HTTP/1.1 {code} {STATUS[code]}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)

    async def stream(self, writer: asyncio.StreamWriter, last: str) -> None:
        """Every event after number `last`, as they come, until the run is over."""
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode())
        number = int(last) + 1 if last.isdecimal() else 0
        while True:
            async with self.more:
                while len(self.lines) <= number and not self.over:
                    await self.more.wait()
            for line in self.lines[number:]:
                writer.write(f"id: {number}\ndata: {line}\n\n".encode())
                number += 1
            await writer.drain()
            if self.over and number >= len(self.lines):
                writer.write(b"event: end\ndata:\n\n")
                return


async def main(wanted: dict[str, Any], port: int = 8000) -> None:
    """Serve while the run lasts, and until somebody ends the server."""
    kit = Kit()
    server = Server(kit, kit.plan(wanted))
    async with await asyncio.start_server(server.answer, "127.0.0.1", port) as listening:
        print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
        training = asyncio.create_task(server.train())
        try:
            await listening.serve_forever()
        finally:
            server.control.stop("the server ends")
            await training


if __name__ == "__main__":
    ask = {"family": "qwen", "preset": "toy", "trigger": "sks", "data": [{"folder": sys.argv[1]}], "name": "server"}
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # ends as Ctrl-C does: saved
    try:
        asyncio.run(main(ask))
    except LorakitError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
