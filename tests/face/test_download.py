"""A photo's address: how long, how much, and where it may lead. The server is our own, on this machine."""

import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from consisid.engine.errors import InputError
from consisid.engine.face import download as module
from consisid.engine.face.download import download, is_public
from consisid.engine.face.photo import load_photo

CONTENT = b"x" * 3000


def anywhere(ip):
    return True


class Handler(BaseHTTPRequestHandler):
    """What its server's `answers` have for a path: (status, headers, content), or a function of the handler."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        answer = self.server.answers[self.path]
        if callable(answer):
            answer(self)
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """Its address is server.url; what is asked of it, server.asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as here:
        here.daemon_threads, here.block_on_close = True, False
        here.answers, here.asked = {"/me.png": (200, {"Content-Length": str(len(CONTENT))}, CONTENT)}, []
        here.url = f"http://127.0.0.1:{here.server_port}"
        thread = threading.Thread(target=here.serve_forever, args=(0.01,))
        thread.start()
        yield here
        here.shutdown()
        thread.join()


def test_what_is_there(server):
    server.answers["/a%20b%C3%A9.png?x=1%202"] = server.answers["/no-length.png"] = (200, {}, CONTENT)
    for path in ("/me.png", "/no-length.png", "/a bé.png?x=1 2"):
        assert download(server.url + path, anywhere) == CONTENT
    assert server.asked[0] == ("/me.png", server.url.removeprefix("http://"))


def test_nothing_on_this_machine_or_its_network_is_asked(server):
    port = server.server_port
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]"):
        with pytest.raises(InputError, match=r"leads to .* not on the public internet; download the photo and give"):
            load_photo(f"http://{host}:{port}/me.png")
    assert server.asked == []


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("64:ff9b::808:808", True), ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False), ("172.16.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("240.0.0.1", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fc00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False), ("fec0::1", False),
    ],
)  # fmt: skip
def test_what_is_public(ip, public):
    assert is_public(ipaddress.ip_address(ip)) is public


def test_a_name_is_resolved_once(server, monkeypatch):
    """What was checked is what is asked, whatever the name means a moment later."""
    answers = [[("203.0.113.9", 1)], [("127.0.0.1", 1)]]
    resolved, reached = [], []

    def resolve(host, port, **options):
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in answers[len(resolved) - 1]]

    def connect(place, timeout):
        reached.append(place)
        raise OSError("nobody is there")

    monkeypatch.setattr(module.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(module.socket, "create_connection", connect)
    with pytest.raises(InputError, match=r"cannot be fetched \(nobody is there\)"):
        download("http://rebind.example.org/me.png", lambda ip: str(ip) == "203.0.113.9")
    assert (resolved, reached) == (["rebind.example.org"], [("203.0.113.9", 80)])


def test_redirects_are_followed_and_checked(server):
    answers = server.answers
    answers["/moved"] = (302, {"Location": "/me.png"}, b"")
    answers["/local"] = (301, {"Location": "http://[::1]:9/secret"}, b"")
    answers["/file"] = (307, {"Location": "file:///etc/passwd"}, b"")
    answers["/round"] = (308, {"Location": "/round"}, b"")
    assert download(f"{server.url}/moved", anywhere) == CONTENT
    for path, message in (
        ("/local", r"/local: leads to ::1, which is not on the public internet"),
        ("/file", r"/file: leads to file:///etc/passwd, which is no http address"),
        ("/round", r"redirects more than 5 times"),
    ):
        with pytest.raises(InputError, match=message):
            download(server.url + path, lambda ip: str(ip) == "127.0.0.1")


def drip(handler):
    """A byte at a time, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    try:
        while True:
            handler.wfile.write(handler.server.dripped)
            time.sleep(0.05)
    except OSError:
        handler.server.ended.set()


@pytest.mark.parametrize("dripped", [b"x", b"X-A: b\r\n", b"\r\n\r\nx"])
def test_what_takes_for_ever_ends_in_time(server, dripped):
    """In the headers and in the content; the connection is closed too."""
    server.answers["/slow"], server.dripped, server.ended = drip, dripped, threading.Event()
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"/slow: takes longer than 0\.5 seconds; download the photo and give its path"
    ):
        download(f"{server.url}/slow", anywhere, timeout=0.5)
    assert time.monotonic() - start < 5
    assert server.ended.wait(10)


def test_a_name_that_is_looked_up_for_ever(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *a, **k: released.wait(30) and [])
    with pytest.raises(InputError, match="takes longer than"):
        download("http://example.org/me.png", anywhere, timeout=0.2)
    released.set()


def test_limits(server):
    server.answers["/stated"] = (200, {"Content-Length": str(10**12)}, b"")
    server.answers["/unstated"] = (200, {}, CONTENT)
    server.answers["/cut"] = (200, {"Content-Length": "5000"}, CONTENT)
    for path, message in (
        ("/stated", "more than 0.000953674 MiB"), ("/unstated", "more than 0.000953674 MiB"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            download(server.url + path, anywhere, max_bytes=1000)
    with pytest.raises(InputError, match=r"cannot be fetched \(the connection was cut\)"):
        download(f"{server.url}/cut", anywhere)


@pytest.mark.parametrize(
    "address",
    [
        "http://", "http://[::1", "http://a b/me.png", "http://example.org:99999/", "http://exa\nmple.org/",
        "http://" + "a" * 300 + ".org/", "http://user:pass@/x", "http://\udcff.org/", "http://é.invalid/\udcff",
        "https://.../",
    ],
)  # fmt: skip
def test_what_is_no_address(address):
    with pytest.raises(InputError) as caught:
        load_photo(address)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_server(server):
    server.answers["/gone"] = (404, {}, b"<html>")
    server.answers["/other"] = lambda handler: handler.wfile.write(b"220 smtp ready\r\n")
    with pytest.raises(InputError, match=r"cannot be fetched \(HTTP 404 Not Found\)"):
        download(f"{server.url}/gone", anywhere)
    with pytest.raises(InputError, match="cannot be fetched"):
        download(f"{server.url}/other", anywhere)
