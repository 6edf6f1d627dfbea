"""An address to the bytes behind it: within a time and a size, and from the public internet only.

Whoever gives an address may be somebody else than the one whose machine this is: it leads to no service that only this
machine or its network can reach, neither by itself, nor by what its name resolves to, nor by a redirect.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TIMEOUT = 20.0  # seconds for everything: names, redirects, headers and content
MAX_BYTES = 100 << 20
REDIRECTS = 5
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
REMEDY = "download the photo and give its path"


def is_address(name: str) -> bool:
    """Whether a source of a photo is an http(s) address rather than a path."""
    return name.lower().startswith(("http://", "https://"))


def is_public(ip: Address) -> bool:
    """Whether an address is of the public internet; one of IPv4 that is wrapped into one of IPv6 counts by itself."""
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(inside)
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def download(
    address: str,
    allowed: Callable[[Address], bool] = is_public,
    timeout: float = TIMEOUT,
    max_bytes: int = MAX_BYTES,
    hosts: Callable[[str], bool] = lambda name: True,
) -> bytes:
    """The content of an http(s) address, directly: settings of proxies are not used.

    Args:
        allowed: whether a host may be asked, by its address.
        hosts: whether a host may be asked, by its name; also those that a redirect leads to.
        timeout: seconds for everything together.
        max_bytes: of the content.

    Raises:
        InputError: it cannot be fetched, leads to where it should not, takes too long or is too large.
    """
    deadline, opened, found = time.monotonic() + timeout, list[socket.socket](), Future[bytes]()

    def work() -> None:
        try:
            found.set_result(_fetch(address, allowed, hosts, deadline, max_bytes, opened))
        except BaseException as error:  # it is raised where the result is asked for
            found.set_exception(error)

    # In a thread, because nothing else ends a look-up of a name, or headers that come byte by byte, in time.
    Thread(target=work, name="download", daemon=True).start()
    try:
        return found.result(timeout)
    except InputError:
        raise
    except TimeoutError:
        raise InputError(f"{address}: takes longer than {timeout:g} seconds; {REMEDY}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{address}: cannot be fetched ({reason}); {REMEDY}") from error
    finally:
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # what waits for it in the thread returns
            connection.close()


def _fetch(
    address: str,
    allowed: Callable[[Address], bool],
    hosts: Callable[[str], bool],
    deadline: float,
    max_bytes: int,
    opened: list[socket.socket],
) -> bytes:
    asked = address
    for _ in range(REDIRECTS + 1):
        parts = urlsplit(address)
        if not is_address(address) or not parts.hostname:
            raise InputError(f"{asked}: leads to {address}, which is no http address; {REMEDY}")
        if not hosts(parts.hostname):
            raise InputError(f"{asked}: leads to {parts.hostname}, which may not be asked; {REMEDY}")
        connection = _connect(asked, parts, allowed, deadline, opened)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
        )
        # Some hosts refuse what does not say who it is.
        connection.request("GET", path, headers={"User-Agent": "consisid", "Accept": "image/*, */*;q=0.1"})
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
            address = urljoin(address, answer.getheader("Location"))
            continue
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status} {answer.reason}")
        if (answer.length or 0) <= max_bytes:
            data = answer.read(max_bytes + 1)
            if len(data) <= max_bytes:
                if answer.length:
                    raise OSError("the connection was cut")
                return data
        raise InputError(f"{asked}: more than {max_bytes / 2**20:g} MiB; {REMEDY}")
    raise InputError(f"{asked}: redirects more than {REDIRECTS} times; {REMEDY}")


def _connect(
    asked: str,
    parts: SplitResult,
    allowed: Callable[[Address], bool],
    deadline: float,
    opened: list[socket.socket],
) -> http.client.HTTPConnection:
    """A connection to one of the addresses that were checked: the name is not resolved a second time."""
    secure = parts.scheme.lower() == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    there = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in there))
    public = [ip for ip in addresses if allowed(ipaddress.ip_address(ip))]
    if not public:
        raise InputError(
            f"{asked}: leads to {addresses[0] if addresses else host}, which is not on the public internet; {REMEDY}"
        )
    plain = _reach(public, port, deadline)
    opened.append(plain)
    if time.monotonic() > deadline:  # whoever closes what is opened may have done so already
        plain.close()
        raise TimeoutError
    if not secure:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = plain
        return connection
    connection = http.client.HTTPSConnection(host, port)
    connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    opened[-1] = connection.sock
    return connection


def _reach(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """The first of several addresses that answers."""
    failed: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            raise
        except OSError as error:
            failed = error
    raise failed or OSError("it has no address")
