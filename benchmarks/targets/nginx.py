"""nginx as a plain reverse proxy: the floor. It reads no key, no model, no usage, and records nothing."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

from machine import first_line, how_to_get, tool
from shapes import Shape
from targets.target import Running, Target, launch

# `client_body_buffer_size` keeps the 24 KB request in memory, `keepalive_requests` keeps connections open: both only
# help nginx. Buffering is off for streams alone, because a client of a stream wants each event when it comes.
_CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid {workdir}/nginx.pid;
error_log {workdir}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {workdir}/body;
    proxy_temp_path {workdir}/proxy;
    fastcgi_temp_path {workdir}/fastcgi;
    uwsgi_temp_path {workdir}/uwsgi;
    scgi_temp_path {workdir}/scgi;
    client_body_buffer_size 128k;
    keepalive_requests 100000000;
    tcp_nodelay on;
    upstream model {{
        server 127.0.0.1:{upstream_port};
        keepalive 128;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location /v1/ {{ proxy_pass http://model; }}
        location /stream/v1/ {{ proxy_buffering off; proxy_pass http://model/v1/; }}
    }}
}}
"""


class Nginx(Target):
    """One worker, keep-alive on both sides, no access log."""

    name = "nginx"
    told = "plain reverse proxy: no key, no limits, no record"

    def missing(self) -> str | None:
        return None if tool("nginx") else how_to_get("nginx")

    def version(self) -> str:
        return first_line(tool("nginx") or "nginx", "-v").removeprefix("nginx version: ")

    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        user = f"user {getpass.getuser()};" if getpass.getuser() == "root" else ""
        configuration = workdir / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(workdir=workdir, port=port, upstream_port=upstream_port, user=user)
        )
        command = [tool("nginx") or "nginx", "-p", workdir, "-c", configuration, "-e", workdir / "error.log"]
        return launch(command, port=port, workdir=workdir, pin=pin)

    def url(self, running: Running, shape: Shape) -> str:
        folder = "/stream" if shape.stream else ""
        return f"http://127.0.0.1:{running.port}{folder}/v1/chat/completions"
