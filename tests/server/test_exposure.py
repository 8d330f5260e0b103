"""Who can reach a server, and over what: binds beyond loopback, TLS and mTLS, certificates that are renewed, the port beside."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calls import eventually

import vecdb
from vecdb import errors
from vecdb.server.config import check_exposure, config_of, is_loopback
from vecdb.server.keys import Keys
from vecdb.server.serve import Server
from vecdb.server.workers import Supervisor

EVERYWHERE = ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "127.0.0.1.example.org", "localhost.", "0", "[::]"]


@pytest.mark.parametrize("host", EVERYWHERE)
@pytest.mark.parametrize("setting", ["host", "metrics_host"])
def test_a_bind_beyond_loopback_names_the_options_that_are_missing(host: str, setting: str, path: Path, authority: Any) -> None:
    cert, key = authority.certificate("server")
    bare = {"db": str(path), "metrics_port": 0, setting: host}
    secured = {**bare, "cert": cert, "key": key}
    with pytest.raises(errors.InvalidInput, match="--tls-cert FILE --tls-key FILE and a key .vecdb keys create"):
        check_exposure(config_of(**bare), has_keys=False)
    with pytest.raises(errors.InvalidInput, match="keys create") as raised:
        check_exposure(config_of(**secured), has_keys=False)
    assert "--tls-cert" not in str(raised.value)
    with pytest.raises(errors.InvalidInput, match="--tls-cert FILE --tls-key FILE") as raised:
        check_exposure(config_of(**bare), has_keys=True)
    assert "keys create" not in str(raised.value)
    check_exposure(config_of(**secured), has_keys=True)
    with_ca = config_of(**secured, client_ca=authority.ca)
    if setting == "host":
        check_exposure(with_ca, has_keys=False)
    else:
        with pytest.raises(errors.InvalidInput, match="keys create"):  # that port asks for no certificates
            check_exposure(with_ca, has_keys=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_neither(host: str, path: Path) -> None:
    assert is_loopback(host)
    check_exposure(config_of(db=str(path), host=host, metrics_host=host, metrics_port=0), has_keys=False)


@pytest.mark.parametrize("kind", [Server, Supervisor])
def test_a_server_that_is_refused_opens_nothing(kind: Any, path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="other machines"):
        kind(config_of(db=str(path), host="0.0.0.0", port=0, workers=1 if kind is Server else 2))
    assert not path.exists()


def test_halves_of_certificates_are_refused(path: Path, authority: Any, stranger: Any, tmp_path: Path) -> None:
    cert, key = authority.certificate("server")
    _, other = stranger.certificate("server")
    for settings in ({"cert": cert}, {"key": key}, {"client_ca": authority.ca}):
        with pytest.raises(errors.InvalidInput, match="--tls-cert"):
            config_of(db=str(path), **settings)
    with pytest.raises(errors.NotFound, match="nowhere"):
        config_of(db=str(path), cert=str(tmp_path / "nowhere"), key=key)
    with pytest.raises(errors.InvalidInput, match="PEM"):
        Server(config_of(db=str(path), port=0, cert=cert, key=other))


def test_over_tls_only_those_who_believe_the_authority_come_in(
    serve: Callable[..., Any], connect: Callable[..., Any], authority: Any, stranger: Any, filled: Callable[..., None]
) -> None:
    filled("docs")
    cert, key = authority.certificate("server")
    server = serve(cert=cert, key=key)
    assert connect(server.port, ca=authority.ca)["docs"].count() == 20
    with pytest.raises(errors.Unavailable):
        connect(server.port, ca=stranger.ca)
    with pytest.raises(errors.Unavailable):
        connect(server.port)  # in the clear


def test_where_clients_need_certificates_only_those_of_the_authority_count(
    serve: Callable[..., Any], connect: Callable[..., Any], authority: Any, stranger: Any, filled: Callable[..., None]
) -> None:
    filled("docs")
    cert, key = authority.certificate("server")
    server = serve(cert=cert, key=key, client_ca=authority.ca)
    mine, others = (dict(zip(("cert", "key"), each.certificate("me"), strict=True)) for each in (authority, stranger))
    assert connect(server.port, ca=authority.ca, **mine)["docs"].count() == 20
    for wrong in ({}, others):
        with pytest.raises(errors.Unavailable):
            connect(server.port, ca=authority.ca, **wrong)


def test_a_clients_certificate_is_no_key_where_keys_are_in_use(
    serve: Callable[..., Any], connect: Callable[..., Any], authority: Any, key_of: Callable[..., str]
) -> None:
    cert, key = authority.certificate("server")
    server = serve(cert=cert, key=key, client_ca=authority.ca)
    mine = dict(zip(("cert", "key"), authority.certificate("me"), strict=True))
    with pytest.raises(errors.Unauthenticated):
        connect(server.port, ca=authority.ca, **mine)
    assert connect(server.port, ca=authority.ca, **mine, api_key=key_of("read")).collections() == []


def presented(port: int, ca: str) -> bytes:
    """The certificate that a server shows, in DER."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def der(path: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(path).read_text())


def test_a_renewed_certificate_is_used_by_the_next_connection_and_a_half_written_one_never(
    serve: Callable[..., Any], connect: Callable[..., Any], authority: Any, tmp_path: Path, key_of: Callable[..., str]
) -> None:
    first, second = authority.certificate("first"), authority.certificate("second")
    cert, key = str(tmp_path / "server.cert"), str(tmp_path / "server.key")
    for source, target in zip(first, (cert, key), strict=True):
        shutil.copy(source, target)
    server = serve(cert=cert, key=key)
    token = key_of("read")
    kept = connect(server.port, ca=authority.ca, api_key=token)
    assert presented(server.port, authority.ca) == der(first[0])
    shutil.copy(second[0], cert)  # its key is still to come
    assert presented(server.port, authority.ca) == der(first[0])
    shutil.copy(second[1], key)
    assert presented(server.port, authority.ca) == der(second[0])
    assert kept.collections() == connect(server.port, ca=authority.ca, api_key=token).collections() == []


# -- the port beside -----------------------------------------------------------------------------------------


def got(url: str, context: ssl.SSLContext | None = None, key: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={} if key is None else {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_on_loopback_the_port_beside_is_plain_and_has_three_pages(
    serve: Callable[..., Any], filled: Callable[..., None]
) -> None:
    filled("docs")
    server = serve(metrics_port=0)
    base = f"http://127.0.0.1:{server.metrics_port}"
    assert got(f"{base}/healthz") == (200, b"ok\n")
    assert got(f"{base}/readyz") == (200, b"ok\n")
    code, text = got(f"{base}/metrics")
    assert code == 200
    assert b'vecdb_collection_rows{collection="docs"} 20.0' in text
    for page in ("/", "/metrics/../keys.json", "/keys.json", "//etc/passwd", "/metrics?x"):
        assert got(f"{base}{page}")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=30)
    connection.request("POST", "/metrics", b"x")
    assert connection.getresponse().status == 501
    connection.close()
    server.stop()
    eventually(lambda: server._stopped.is_set(), "stopped")
    assert got(f"{base}/readyz")[0] == 503, "it drains"


def test_beyond_loopback_figures_want_a_key_for_all_collections(
    serve: Callable[..., Any], authority: Any, key_of: Callable[..., str]
) -> None:
    cert, key = authority.certificate("server")
    everything, some = key_of("read"), key_of("admin", "docs")
    server = serve(cert=cert, key=key, metrics_port=0, metrics_host="0.0.0.0")
    base, trusted = f"https://127.0.0.1:{server.metrics_port}", ssl.create_default_context(cafile=authority.ca)
    assert got(f"{base}/healthz", trusted)[0] == 200
    for wrong in (None, some, "nonsense"):
        assert got(f"{base}/metrics", trusted, wrong)[0] == 401
    assert got(f"{base}/metrics", trusted, everything)[0] == 200
    with pytest.raises((urllib.error.URLError, OSError)):
        got(f"http://127.0.0.1:{server.metrics_port}/metrics")


def test_the_port_beside_has_the_renewed_certificate_too(
    serve: Callable[..., Any], authority: Any, tmp_path: Path, key_of: Callable[..., str]
) -> None:
    key_of("read")
    first, second = authority.certificate("first"), authority.certificate("second")
    cert, key = str(tmp_path / "server.cert"), str(tmp_path / "server.key")
    for source, target in zip(first, (cert, key), strict=True):
        shutil.copy(source, target)
    server = serve(cert=cert, key=key, metrics_port=0, metrics_host="0.0.0.0")
    assert presented(server.metrics_port, authority.ca) == der(first[0])
    shutil.copy(second[0], cert)
    assert presented(server.metrics_port, authority.ca) == der(first[0])
    shutil.copy(second[1], key)
    assert presented(server.metrics_port, authority.ca) == der(second[0])


def test_both_ports_serve_over_ipv6(serve: Callable[..., Any]) -> None:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = serve(host="::1", metrics_host="::1", metrics_port=0)
    with vecdb.connect(f"grpc://[::1]:{server.port}") as db:
        assert db.collections() == []
    assert got(f"http://[::1]:{server.metrics_port}/healthz")[0] == 200


def test_a_port_that_is_taken_is_named_and_nothing_is_left_behind(serve: Callable[..., Any], tmp_path: Path) -> None:
    import threading

    server = serve(metrics_port=0)
    before = threading.active_count()
    for taken in ({"port": server.port}, {"port": 0, "metrics_port": server.metrics_port}):
        with pytest.raises(errors.StorageError, match="cannot be listened on"):
            Server(config_of(db=str(tmp_path / "other"), **taken))
    eventually(lambda: threading.active_count() <= before, "no thread of a server that did not begin")
    assert not Keys(tmp_path / "other" / "keys.json")
