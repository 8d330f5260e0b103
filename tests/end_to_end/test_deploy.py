"""What deploy/ holds fits the server that there is: options, ports, probes, paths; and nothing of it runs as root."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vecdb.server.config import Config, check_exposure, config_of

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Those of `vecdb serve`."""
    import typer

    from vecdb.cli import app

    serve = typer.main.get_command(app()).commands["serve"]  # type: ignore[attr-defined]
    found = {option for parameter in serve.params for option in parameter.opts}
    assert {"--db", "--config", "--tls-cert"} <= found
    return found


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """deploy/vecdb.toml, as the server reads it, with files in the places of those that it names."""
    (tmp_path / "tls.crt").touch()
    (tmp_path / "tls.key").touch()
    text = (DEPLOY / "vecdb.toml").read_text().replace("/tls/", f"{tmp_path}/")
    (tmp_path / "vecdb.toml").write_text(text)
    return config_of(str(tmp_path / "vecdb.toml"))


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(first, rest.strip()) for first, _, rest in (line.partition(" ") for line in lines.splitlines() if line.strip())]


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    return instructions((DEPLOY / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def test_the_configuration_may_be_reached_from_elsewhere_once_there_is_a_key(config: Config) -> None:
    check_exposure(config, has_keys=True)
    assert not Path(config.db).is_relative_to("/tmp")
    assert config.metrics_port not in (None, config.port)


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody(dockerfile: list[tuple[str, str]], config: Config) -> None:
    stages = [at for at, (word, _) in enumerate(dockerfile) if word == "FROM"]
    assert len(stages) == 2, "the tools of the build stay behind"
    for word, rest in dockerfile:
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    copied = {source for word, rest in dockerfile[: stages[1]] if word == "COPY" for source in rest.split()[:-1]}
    project = (ROOT / "pyproject.toml").read_text()
    for package in re.search(r"wheel\]\npackages = \[(.*?)\]", project)[1].replace('"', "").split(", "):  # type: ignore[index]
        assert package.split("/")[0] in copied, package
    final = dockerfile[stages[1] :]
    users = [rest for word, rest in final if word == "USER"]
    assert users and all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users), (
        "a number, so that it is seen not to be root"
    )
    assert {int(port) for word, rest in final if word == "EXPOSE" for port in rest.split()} == {
        config.port,
        config.metrics_port,
    }
    (volume,) = [rest for word, rest in final if word == "VOLUME"]
    assert config.db.startswith(f"{volume}/")
    assert not [rest for word, rest in final if word == "ENV" and re.search("KEY|SECRET|PASSWORD", rest)]


def test_hadolint_takes_the_image() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed here")
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_starts_the_server_and_looks_after_it(
    dockerfile: list[tuple[str, str]], config: Config, options: set[str]
) -> None:
    told = dict(dockerfile)
    entry, command = yaml.safe_load(told["ENTRYPOINT"]), yaml.safe_load(told["CMD"])
    assert entry == ["vecdb"] and command[0] == "serve"
    assert {each for each in command if each.startswith("--")} <= options
    assert ("COPY", f"deploy/vecdb.toml {command[command.index('--config') + 1]}") in dockerfile
    assert told["STOPSIGNAL"] == "SIGTERM"
    check = told["HEALTHCHECK"]
    assert f"https://127.0.0.1:{config.metrics_port}/readyz" in check and "CMD" in check
    code = yaml.safe_load(check[check.index("[") :])[2]
    compile(code, "HEALTHCHECK", "exec")


def _unit() -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for line in (DEPLOY / "vecdb.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            told.setdefault(name, []).append(value)
    return told


def test_the_unit_starts_the_server_and_gives_it_time_to_drain(options: set[str]) -> None:
    unit = _unit()
    (start,) = unit["ExecStart"]
    command = shlex.split(start)
    assert command[1] == "serve"
    said = dict(zip(command[2::2], command[3::2], strict=True))
    assert set(said) <= options
    assert float(unit["TimeoutStopSec"][0]) > float(said["--grace"]) + 10  # what workers get beside it
    assert said["--db"].startswith(f"/var/lib/{unit['StateDirectory'][0]}/")
    assert unit["Environment"] == [f"VECDB_CACHE_DIR=/var/cache/{unit['CacheDirectory'][0]}"]
    assert unit["User"] != ["root"] and unit["NoNewPrivileges"] == ["yes"] and unit["CapabilityBoundingSet"] == [""]
    made = config_of(None, db="x", host=said["--host"], port=int(said["--port"]), metrics_port=int(said["--metrics-port"]))
    check_exposure(made, has_keys=False)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    copy = tmp_path / "vecdb.service"
    text = (DEPLOY / "vecdb.service").read_text()
    copy.write_text(text.replace("/opt/vecdb/bin/vecdb", str(Path(sys.executable).parent / "vecdb")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )
    assert "vecdb.service" not in done.stderr, done.stderr
    copy.write_text(copy.read_text().replace("ProtectSystem=strict", "ProtectSystem=mostly"))
    wrong = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )
    assert "vecdb.service" in wrong.stderr, "it looks at units here"


def test_kubernetes_keeps_one_server_with_a_disk_and_probes_it(
    manifest: dict[str, Any], config: Config, options: set[str], dockerfile: list[tuple[str, str]]
) -> None:
    whole = manifest["StatefulSet"]["spec"]
    pod = whole["template"]["spec"]
    assert whole["replicas"] == 1
    assert (
        whole["selector"]["matchLabels"] == whole["template"]["metadata"]["labels"] == manifest["Service"]["spec"]["selector"]
    )
    (server,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}
    assert {port["targetPort"]: port["port"] for port in manifest["Service"]["spec"]["ports"]} == ports
    assert {each for each in server["args"] if each.startswith("--")} <= options
    assert server["args"] == yaml.safe_load(dict(dockerfile)["CMD"])
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert server[probe]["httpGet"] == {"path": path, "port": "metrics", "scheme": "HTTPS"}
    assert pod["terminationGracePeriodSeconds"] > config.grace + 10

    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    (claim,) = whole["volumeClaimTemplates"]
    assert config.db.startswith(mounts[claim["metadata"]["name"]] + "/")
    secrets = [volume for volume in pod["volumes"] if "secret" in volume]
    assert [mounts[volume["name"]] for volume in secrets] == ["/tls"]
    told = (DEPLOY / "vecdb.toml").read_text()
    assert 'cert = "/tls/tls.crt"' in told and 'key = "/tls/tls.key"' in told  # as secrets of the kind tls have them
    assert {mount["name"] for mount in server["volumeMounts"]} <= {
        *(volume["name"] for volume in pod["volumes"]),
        claim["metadata"]["name"],
    }


def test_kubernetes_runs_it_as_nobody(manifest: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    pod = manifest["StatefulSet"]["spec"]["template"]["spec"]
    user, group = map(int, dict(dockerfile)["USER"].split(":"))
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (user, group)
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod["initContainers"]]:
        locked = container["securityContext"]
        assert locked["allowPrivilegeEscalation"] is False and locked["readOnlyRootFilesystem"] is True
        assert locked["capabilities"] == {"drop": ["ALL"]}


def test_the_first_key_is_made_as_the_manifest_does_it(manifest: dict[str, Any], tmp_path: Path) -> None:
    """Before there is a database; and not again when there is a key."""
    (first,) = manifest["StatefulSet"]["spec"]["template"]["spec"]["initContainers"]
    script = first["args"][0].replace("/data", str(tmp_path))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True, env={"PATH": path}, timeout=60)
    secret = (tmp_path / "bootstrap.key").read_text().strip()
    assert (tmp_path / "bootstrap.key").stat().st_mode & 0o077 == 0

    import vecdb
    from vecdb.server.serve import Server

    server = Server(Config(db=str(tmp_path / "vecdb"), port=0))
    server.start()
    try:
        with vecdb.connect(f"grpc://127.0.0.1:{server.port}", api_key=secret) as db:
            assert db.collections() == []
    finally:
        server.stop()
        server.wait()
