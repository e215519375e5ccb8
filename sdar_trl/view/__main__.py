"""`python -m sdar_trl.view RUN [RUN ...]`: the episodes of runs as a page."""

import argparse
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import page


def handler(make_page: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    """What answers a browser of this machine with the page, made anew each time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in ("localhost", "127.0.0.1"):  # another site's name that leads here
                return self.send_error(403)
            if self.path != "/":
                return self.send_error(404)
            body = make_page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def main(args: list[str] | None = None) -> None:
    """
    The command.

    Args:
        args (`list[str]`, *optional*):
            The command line. If `None`, this process's.
    """
    parser = argparse.ArgumentParser("python -m sdar_trl.view", description="Episodes of runs as a page to look at.")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a run's output folder, or a file of episodes or of records"
    )
    parser.add_argument(
        "--output", type=Path, help="the page (default: episodes.html beside the first RUN's episodes)"
    )
    parser.add_argument(
        "--serve", nargs="?", const=8000, type=int, metavar="PORT", help="serve it on localhost, made anew each time"
    )
    given = parser.parse_args(args)
    try:
        text, count = page(given.runs)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if given.serve is not None:
        server = ThreadingHTTPServer(("127.0.0.1", given.serve), handler(lambda: page(given.runs)[0]))
        print(f"{count} episodes: http://localhost:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
    first = given.runs[0]
    output = given.output or (first if first.is_dir() else first.parent) / "episodes.html"
    output.write_bytes(text.encode())  # the script to the byte: its hash is in the page
    print(f"{count} episodes, {len(text) / 2**20:.1f} MiB: {output}")


if __name__ == "__main__":
    main()
