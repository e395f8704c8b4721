# SPDX-License-Identifier: Apache-2.0
"""`jmp login`: whom it believes, how it gets a token, and what it writes. Against a real controller and issuer."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_harness import BIN, TIMEOUT, Authority, Cli, only_error, secret_file
from controller_harness import LabFiles
from oidc_test_issuer import LoopbackIssuer

SECRET = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


@pytest.fixture(scope="module")
def oidc_files(tmp_path_factory: pytest.TempPathFactory) -> LabFiles:
    return LabFiles.make(tmp_path_factory.mktemp("oidc") / "lab")


@pytest.fixture(scope="module")
def issuer_process(oidc_files: LabFiles) -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer().serving(oidc_files.folder / "server.crt", oidc_files.folder / "server.key") as issuer:
        yield issuer


@pytest.fixture(scope="module")
def oidc_lab(oidc_files: LabFiles, issuer_process: LoopbackIssuer) -> Iterator[LabFiles]:
    """A controller that believes the issuer; alice, root and an exporter are known there."""
    settings = yaml.safe_load(oidc_files.config.read_text())
    jwt = {
        "issuer": {"url": issuer_process.url, "audiences": ["jumpstarter-cli"], "certificateAuthority": "ca.crt"},
        "claimMappings": {"username": {"claim": "preferred_username", "prefix": "corp:"}},
    }
    settings["authentication"] = {"jwt": [jwt], "clockSkew": 0}
    settings["login"] = {"listen": "127.0.0.1:0"}
    oidc_files.config.write_text(yaml.safe_dump(settings))
    with oidc_files.serving():
        oidc_files.client("alice", "--oidc-username", "corp:alice")
        oidc_files.client("root", "--admin")
        oidc_files.exporter("board", "-l", "board=x")
        yield oidc_files


@pytest.fixture
def issuer(issuer_process: LoopbackIssuer, oidc_lab: LabFiles) -> LoopbackIssuer:
    """The issuer as new: it is the lab's login page, too."""
    fresh = LoopbackIssuer(url=issuer_process.url)
    for name in ("passwords", "subject_tokens", "user", "lifetime", "document", "deny", "requests"):
        setattr(issuer_process, name, getattr(fresh, name))
    issuer_process.login_page = {
        "grpcEndpoint": oidc_lab.endpoint,
        "namespace": "default",
        "caBundle": base64.b64encode(oidc_lab.ca).decode(),
        "oidc": [{"issuer": issuer_process.url, "clientId": "jumpstarter-cli", "audiences": ["jumpstarter-cli"]}],
    }
    return issuer_process


def address(issuer: LoopbackIssuer, client: str = "alice") -> str:
    return f"{client}@{issuer.url.removeprefix('https://')}"


def fingerprint(lab: LabFiles) -> str:
    """Of the lab's authority, as openssl writes it."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(lab.ca.decode())).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, 64, 2))


def stored(cli: Cli, name: str = "alice", kind: str = "clients") -> dict[str, Any]:
    """The configuration that was written, which only its owner may read."""
    path = cli.directory / "xdg" / "jumpstarter" / kind / f"{name}.yaml"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


def works(cli: Cli, name: str = "alice") -> None:
    """The stored token opens the lab."""
    result = cli.jmp("auth", "whoami", "--client", name, "-o", "json")
    assert result.returncode == 0 and json.loads(result.stdout)["name"] == name, result


def log_in(cli: Cli, *args: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """`jmp login`, which shows no token to anybody, however much it logs."""
    result = cli.run(BIN / "jmp", "--log-level", "DEBUG", "login", *args, input=input)
    assert not SECRET.search(result.stdout + result.stderr), result
    result.stderr = re.sub(r"(?m)^[\d:]+ (DEBUG|INFO) .*\n", "", result.stderr)
    return result


@contextmanager
def logging_in(cli: Cli, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Context: `jmp login`, which waits for a person."""
    with subprocess.Popen(
        [str(BIN / "jmp"), "login", *args],
        env=cli.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], pattern: str) -> str:
    """The first group of the first line of stderr that matches."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(pattern, line):
            return match.group(1)
    raise AssertionError(seen)


def browse(lab: LabFiles, url: str) -> str:
    """What a browser shows at the end."""
    context = ssl.create_default_context(cadata=lab.ca.decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(url, timeout=TIMEOUT) as page:
        text: str = page.read().decode()
    return text


def password(cli: Cli, issuer: LoopbackIssuer, lab: LabFiles, *more: str) -> subprocess.CompletedProcess[str]:
    """Log alice in by her password."""
    secret = secret_file(cli.directory / "password", issuer.passwords["alice"])
    options = ["--ca-fingerprint", fingerprint(lab), "--username", "alice", "--password-file", secret, *more]
    result = log_in(cli, address(issuer), *options)
    assert result.returncode == 0, result
    return result


# --- whom to believe ---------------------------------------------------------------------------------------------


def test_an_unknown_authority_is_refused_and_its_fingerprint_told(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    error = only_error(log_in(cli, address(issuer), "--username", "alice", "--password", "x"))
    assert fingerprint(oidc_lab) in error and "--ca-fingerprint" in error
    assert issuer.asked("/token") == []  # no secret left this machine
    assert not (cli.directory / "xdg" / "jumpstarter" / "clients").exists()


def test_another_authority_than_the_given_one_is_refused(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    wrong = fingerprint(oidc_lab)[:-2] + ("00" if not fingerprint(oidc_lab).endswith("00") else "01")
    assert "another one than asked for" in only_error(log_in(cli, address(issuer), "--ca-fingerprint", wrong))
    assert "no SHA-256 fingerprint" in only_error(log_in(cli, address(issuer), "--ca-fingerprint", "AB:CD"))


def test_a_bundle_that_did_not_sign_the_page_is_refused(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles, authority: Authority
) -> None:
    # Whoever sits in between may show the lab's authority, but cannot show a certificate of it.
    assert issuer.login_page is not None
    issuer.login_page["caBundle"] = base64.b64encode(authority.ca.read_bytes()).decode()
    der = ssl.PEM_cert_to_DER_cert(authority.ca.read_text())
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    options = ["--ca-fingerprint", hashlib.sha256(der).hexdigest(), "--token-file", "-"]
    result = log_in(cli, address(issuer), *options, input=f"{token}\n")
    assert "/v1/auth/config: its certificate is not trusted" in only_error(result)
    assert not (cli.directory / "xdg" / "jumpstarter" / "clients").exists()


def test_a_person_compares_the_fingerprint(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    token = secret_file(
        cli.directory / "token", yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    )
    for answer, code in ((b"n\n", 1), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        try:
            with subprocess.Popen(
                [str(BIN / "jmp"), "login", address(issuer), "--token-file", str(token)],
                env=cli.environ,
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                os.write(ours, answer)
                _, errors = process.communicate(timeout=TIMEOUT)
        finally:
            os.close(ours)
            os.close(theirs)
        assert process.returncode == code and fingerprint(oidc_lab) in errors, errors
    works(cli)


def test_the_authority_may_come_as_a_file(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    ca = oidc_lab.folder / "ca.crt"
    result = log_in(cli, address(issuer), "--ca", ca, "--token-file", "-", input=f"{token}\n")
    assert result.returncode == 0, result
    assert base64.b64decode(stored(cli)["tls"]["ca"]) == oidc_lab.ca
    works(cli)


def test_no_certificate_is_verified_only_when_that_is_asked_for(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    result = log_in(cli, address(issuer), "--insecure-tls", "--token-file", "-", input=f"{token}\n")
    assert result.returncode == 0 and "not verified" in result.stderr
    assert stored(cli)["tls"] == {"insecure": True}
    works(cli)


# --- tokens of the lab -------------------------------------------------------------------------------------------


def test_a_token_from_a_file(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    path = secret_file(cli.directory / "token", token)
    result = log_in(cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab), "--token-file", path)
    assert result.returncode == 0 and "as client default/alice" in result.stderr, result
    data = stored(cli)
    assert data["token"] == token and data["endpoint"] == oidc_lab.endpoint
    assert data["metadata"] == {"namespace": "default", "name": "alice"} and "refresh_token" not in data
    works(cli)
    # The first client is the current one.
    assert cli.jmp("auth", "whoami", "-o", "name").stdout == "alice\n"


def test_explicit_flags_need_no_login_page(cli: Cli, oidc_lab: LabFiles) -> None:
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    where = ["--endpoint", oidc_lab.endpoint, "--namespace", "default", "--ca", oidc_lab.folder / "ca.crt"]
    result = log_in(cli, "--client", "alice", *where, "--token-file", "-", "--allow", "a.*", input=f"{token}\n")
    assert result.returncode == 0, result
    assert stored(cli)["drivers"] == {"allow": ["a.*"]}
    works(cli)


def test_the_controllers_own_page(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    secret = secret_file(cli.directory / "password", issuer.passwords["alice"])
    options = ["--ca-fingerprint", fingerprint(oidc_lab), "--username", "alice", "--password-file", secret]
    result = log_in(cli, f"alice@{oidc_lab.ready['login']}", *options)
    assert result.returncode == 0, result
    assert stored(cli)["endpoint"] == oidc_lab.endpoint and stored(cli)["metadata"]["namespace"] == "default"
    assert base64.b64decode(stored(cli)["tls"]["ca"]) == oidc_lab.ca
    works(cli)


def test_the_current_client_of_another_lab_is_left_alone(cli: Cli, oidc_lab: LabFiles) -> None:
    old = ["--endpoint", "old:1", "--namespace", "x", "--token", "t", "--nointeractive"]
    cli.jmp("config", "client", "create", "old", *old)
    before = stored(cli, "old")
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    where = ["--endpoint", oidc_lab.endpoint, "--namespace", "default", "--ca", oidc_lab.folder / "ca.crt"]
    nameless = log_in(cli, *where, "--token-file", "-", "--nointeractive", input=f"{token}\n")
    assert nameless.returncode == 2 and "--name" in nameless.stderr
    result = log_in(cli, *where, "--name", "alice", "--token-file", "-", input=f"{token}\n")
    assert result.returncode == 0, result
    assert stored(cli, "old") == before and stored(cli)["token"] == token


def test_an_exporter_logs_in(cli: Cli, oidc_lab: LabFiles) -> None:
    token = yaml.safe_load((oidc_lab.folder / "exporter-board.yaml").read_text())["token"]
    where = ["--endpoint", oidc_lab.endpoint, "--namespace", "default", "--ca", oidc_lab.folder / "ca.crt"]
    result = log_in(cli, "--exporter", "board", *where, "--token-file", "-", input=f"{token}\n")
    assert result.returncode == 0 and "exporter default/board" in result.stderr, result
    assert stored(cli, "board", "exporters")["token"] == token
    wrong = log_in(cli, "--client", "board", *where, "--token-file", "-", input=f"{token}\n")
    assert wrong.returncode == 1 and not (cli.directory / "xdg" / "jumpstarter" / "clients" / "board.yaml").exists()


def test_a_token_that_the_lab_does_not_take_is_not_stored(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    for token in ("nonsense", LoopbackIssuer(url=issuer.url).token("alice")):
        result = log_in(
            cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab), "--token-file", "-", input=f"{token}\n"
        )
        assert "controller" in only_error(result)
    assert not (cli.directory / "xdg" / "jumpstarter" / "clients").exists()


def test_a_token_on_the_command_line_is_warned_about(cli: Cli, oidc_lab: LabFiles) -> None:
    token = yaml.safe_load((oidc_lab.folder / "client-alice.yaml").read_text())["token"]
    where = ["--endpoint", oidc_lab.endpoint, "--namespace", "default", "--ca", oidc_lab.folder / "ca.crt"]
    result = log_in(cli, "--client", "alice", *where, "--token", token)
    assert result.returncode == 0 and "process list" in result.stderr


# --- an issuer ---------------------------------------------------------------------------------------------------


def test_password(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)
    data = stored(cli)
    assert data["refresh_token"] and issuer.asked("/token")[0]["scope"] == "openid profile offline_access"
    record = cli.directory / "xdg" / "jumpstarter" / "clients" / ".alice.login"
    assert yaml.safe_load(record.read_text()) == {"issuer": issuer.url, "clientId": "jumpstarter-cli"}
    assert record.stat().st_mode & 0o777 == 0o600
    works(cli)
    wrong = secret_file(cli.directory / "wrong", "wrong")
    error = only_error(
        log_in(
            cli,
            address(issuer),
            "--ca-fingerprint",
            fingerprint(oidc_lab),
            "--username",
            "alice",
            "--password-file",
            wrong,
        )
    )
    assert "invalid_grant" in error and "wrong" not in error
    assert stored(cli) == data


def test_without_offline_access_there_is_no_refresh_token(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab, "--no-offline-access")
    assert "refresh_token" not in stored(cli) and issuer.asked("/token")[0]["scope"] == "openid profile"


def test_a_browser_with_pkce_and_state(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    with logging_in(cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab)) as process:
        url = line_with(process, r"^\s+(https://\S+)")
        assert "code_challenge_method=S256" in url and "state=" in url
        assert "Logged in" in browse(oidc_lab, url)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and "as client default/alice" in errors
    (form,) = issuer.asked("/token")
    assert form["grant_type"] == "authorization_code" and 43 <= len(form["code_verifier"]) <= 128
    works(cli)


def test_an_answer_with_another_state_is_refused_and_the_login_goes_on(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    with logging_in(cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab)) as process:
        url = line_with(process, r"^\s+(https://\S+)")
        port = re.search(r"localhost%3A(\d+)", url)
        assert port is not None
        callback = f"http://localhost:{port.group(1)}/callback"
        for query in (
            "code=stolen&state=guess",
            "code=stolen",
            "state=guess&error=x",
            "iss=https://evil&code=c&state=s",
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                browse(oidc_lab, f"{callback}?{query}")
            assert refused.value.code == 400
        assert issuer.asked("/token") == []
        browse(oidc_lab, url)
        assert process.wait(TIMEOUT) == 0


def test_a_person_who_says_no(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    issuer.deny = "access_denied"
    with logging_in(cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab)) as process:
        browse(oidc_lab, line_with(process, r"^\s+(https://\S+)"))
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "access_denied: the user said no" in errors


def test_device_flow(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    with logging_in(cli, address(issuer), "--ca-fingerprint", fingerprint(oidc_lab), "--device-flow") as process:
        issuer.approve(line_with(process, r"^\s+([0-9A-F]{8})$"), "alice")
        assert process.wait(TIMEOUT) == 0
    assert stored(cli)["refresh_token"]
    works(cli)


def test_the_token_of_a_ci_system_is_exchanged(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    issuer.subject_tokens = {("token-of-ci", "gitlab"): "alice"}
    options = ["--connector-id", "gitlab", "--token-file", "-", "--ca-fingerprint", fingerprint(oidc_lab)]
    result = log_in(cli, address(issuer), *options, input="token-of-ci\n")
    assert result.returncode == 0, result
    works(cli)


def test_an_issuer_that_is_another_one_gets_nothing(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    issuer.document = {"issuer": "https://evil.example.org"}
    secret = secret_file(cli.directory / "password", "s3cret-password")
    options = ["--ca-fingerprint", fingerprint(oidc_lab), "--username", "alice", "--password-file", secret]
    assert "https://evil.example.org" in only_error(log_in(cli, address(issuer), *options))
    issuer.document = {"token_endpoint": "http://192.0.2.1/token"}
    assert "not https" in only_error(log_in(cli, address(issuer), *options))
    assert issuer.asked("/token") == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "say where"),
        (["@lab"], "not [CLIENT@]LAB"),
        (["a@lab", "--token", "x", "--token-file", "y"], "exclude each other"),
        (["a@lab", "--password", "x"], "goes with --username"),
        (["a@lab", "--ca", "x", "--insecure-tls"], "exclude each other"),
        (["a@lab", "--client", "x", "--exporter", "y"], "exclude each other"),
    ],
)
def test_wrong_usage(cli: Cli, args: list[str], text: str) -> None:
    result = cli.jmp("login", *args)
    assert result.returncode == 2 and text in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ({"namespace": "x"}, "no grpcEndpoint"),
        (None, "login address"),
        ({"grpcEndpoint": "x:1", "caBundle": "?"}, "base64"),
    ],
)
def test_a_page_that_is_not_a_labs(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles, page: dict[str, Any] | None, text: str
) -> None:
    issuer.login_page = page
    ca = secret_file(cli.directory / "ca.pem", oidc_lab.ca.decode())
    result = cli.jmp("login", address(issuer), "--token-file", "-", input="x\n", env={"SSL_CERT_FILE": str(ca)})
    assert text in only_error(result)


def test_plain_http_is_refused(cli: Cli) -> None:
    assert "not https" in only_error(log_in(cli, "a@http://lab.example.org"))


# --- later -------------------------------------------------------------------------------------------------------


def expire(cli: Cli, issuer: LoopbackIssuer) -> str:
    """Put an expired token of the issuer in the place of alice's; it is returned."""
    issuer.lifetime = -10
    token = issuer.token("alice")
    issuer.lifetime = 3600
    path = cli.directory / "xdg" / "jumpstarter" / "clients" / "alice.yaml"
    path.write_text(yaml.safe_dump({**stored(cli), "token": token}))
    path.chmod(0o600)
    return token


def test_an_expired_token_is_renewed_and_the_command_goes_on(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    password(cli, issuer, oidc_lab)
    before = stored(cli)["refresh_token"]
    expired = expire(cli, issuer)
    result = cli.jmp("get", "leases")
    assert result.returncode == 0 and "Logged in again" in result.stderr, result
    after = stored(cli)
    assert after["token"] != expired and after["refresh_token"] != before
    assert cli.jmp("get", "leases").stderr == ""


def test_several_commands_at_once_renew_the_token_once(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)  # its refresh token is good once
    expire(cli, issuer)
    processes = [
        subprocess.Popen(
            [str(BIN / "jmp"), "auth", "whoami"],
            env=cli.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        results = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0, 0], results
    grants = [form["grant_type"] for form in issuer.asked("/token")]
    assert grants.count("refresh_token") == 1


def test_without_a_good_refresh_token_it_is_one_line(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)
    expire(cli, issuer)
    issuer.forget_refresh_tokens()
    result = cli.jmp("get", "leases")
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("Error: controller"), result
    assert "expired" in result.stderr and "Traceback" not in result.stderr


def test_on_a_terminal_an_expired_token_means_a_login_and_the_command_goes_on(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    password(cli, issuer, oidc_lab, "--no-offline-access")
    expire(cli, issuer)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [str(BIN / "jmp"), "get", "leases", "-o", "json"],
        env=cli.environ,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        try:
            shown = b""
            while not (url := re.search(rb"(https://\S+code_challenge\S+)\s", shown)):
                shown += os.read(ours, 4096)
            browse(oidc_lab, url.group(1).decode())
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            os.close(ours)
    assert process.returncode == 0 and json.loads(output) == {"leases": []}
    works(cli)


def test_a_refresh_token_only_goes_to_the_issuer_it_came_from(
    cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles
) -> None:
    password(cli, issuer, oidc_lab)
    expire(cli, issuer)
    (cli.directory / "xdg" / "jumpstarter" / "clients" / ".alice.login").unlink()
    asked = len(issuer.asked("/token"))
    assert cli.jmp("get", "leases").returncode == 1
    assert "which issuer" in only_error(cli.jmp("auth", "refresh"))
    assert len(issuer.asked("/token")) == asked  # although the token names it


def test_auth_refresh(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)
    before = stored(cli)
    result = cli.jmp("auth", "refresh")
    assert result.returncode == 0 and "token refreshed, valid until" in result.stdout
    after = stored(cli)
    assert after["token"] != before["token"] and after["refresh_token"] != before["refresh_token"]
    assert {**after, "token": "", "refresh_token": ""} == {**before, "token": "", "refresh_token": ""}


def test_logging_in_again_takes_the_stored_refresh_token(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)
    assert log_in(cli).returncode == 0
    assert [form["grant_type"] for form in issuer.asked("/token")] == ["password", "refresh_token"]
    works(cli)


def lab_client(cli: Cli, lab: LabFiles, name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A client with a token of the lab's own; returns `jmp` as this client."""
    path = lab.client(name)
    return lambda *args: cli.jmp(*args, "--client-config", path)


def test_auth_status(cli: Cli, issuer: LoopbackIssuer, oidc_lab: LabFiles) -> None:
    password(cli, issuer, oidc_lab)
    data = json.loads(cli.jmp("auth", "status", "-o", "json").stdout)
    assert data["client"] == "alice" and data["issuer"] == issuer.url and not data["expired"] and data["refreshToken"]
    shown = cli.jmp("auth", "status", "-v").stdout
    assert re.search(r"\b5\dm|1h left", shown)
    assert "preferred_username" in shown and not SECRET.search(shown)
    expire(cli, issuer)
    result = cli.jmp("auth", "status")
    assert result.returncode == 1 and "expired" in result.stdout


def test_auth_rotate(cli: Cli, oidc_lab: LabFiles) -> None:
    run = lab_client(cli, oidc_lab, "rotating")
    path = oidc_lab.folder / "client-rotating.yaml"
    before = yaml.safe_load(path.read_text())
    result = run("auth", "rotate")
    assert result.returncode == 0 and "valid until" in result.stdout, result
    after = yaml.safe_load(path.read_text())
    assert after["token"] != before["token"] and {**after, "token": ""} == {**before, "token": ""}
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("auth", "whoami", "-o", "name").stdout == "rotating\n"
    assert "no refresh token" in only_error(run("auth", "refresh"))
