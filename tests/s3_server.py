"""A real S3 server on loopback (moto's), behind a door that can be shut: then it is gone for its clients."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import fsspec

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",  # a server that is gone is reported soon
}


class S3Server:
    """The server process, and a forwarder of its port in this process.

    Attributes:
      environment: with which a process finds it.
    """

    def __init__(self):
        self._port, self._door_port = _free_port(), _free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._door: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self.environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._door_port}"}
        deadline = time.monotonic() + 500
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "moto's server does not start"
                time.sleep(0.1)
        self.open()

    def open(self) -> None:
        """Lets clients in."""
        self._door = socket.create_server(("127.0.0.1", self._door_port))
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def shut(self) -> None:
        """Refuses clients and cuts off those that are connected, as if the server had died."""
        assert self._door
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the server."""
        self.shut()
        self._process.kill()
        self._process.wait()

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._port}", region_name="us-east-1")
        client.create_bucket(Bucket=name)

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((client, server), (server, client)):
                self._connections.add(source)
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._connections.discard(source)
        source.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def running_server():
    """The server, with this process's environment set to find it."""
    server = S3Server()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    _forget_clients()
    try:
        yield server
    finally:
        server.close()
        _forget_clients()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forget_clients() -> None:
    """fsspec keeps one client for each set of arguments; the endpoint is not among them but in the environment."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
