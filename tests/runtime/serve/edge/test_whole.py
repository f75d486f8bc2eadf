"""The real server in its own process, asked by OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
from building import ROOT, command

from msao_compile.runtime.api import Runtime

from .conftest import image

pytestmark = pytest.mark.whole
TOKEN = "0123456789abcdef"
PROMPT = "what color is the circle?"
Process = subprocess.Popen[str]


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[tuple[str, Process]]:
    """A server of a deployment, and its URL."""
    words = command("serve", folder, "--role", "edge", "--port", 0, "--json", *options)
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["listening"], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def server(deployment: Path, token: Path, picture: Path) -> Iterator[str]:
    with serving(deployment, "--token-file", token, "--allow-files", picture.parent) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=TOKEN, max_retries=0)


def test_the_client_reads_an_answer_about_a_picture(
    client: openai.OpenAI, runtime: Runtime, picture: Path, data_url: str
) -> None:
    wanted = runtime.generate(PROMPT, image=picture, max_new_tokens=8)
    for url in (data_url, picture.as_uri()):
        messages = [{"role": "user", "content": [image(url), {"type": "text", "text": PROMPT}]}]
        found = client.chat.completions.create(
            model="vqa",
            messages=messages,
            max_completion_tokens=8,
            temperature=0,
            extra_body={"route": "split"},
        )
        assert found.choices[0].message.content == wanted.text
        assert found.choices[0].finish_reason == "length"
        assert found.usage is not None and found.usage.completion_tokens == 8
        assert found.usage.prompt_tokens == wanted.prompt_tokens
        assert found.model_extra is not None and found.model_extra["msao"]["route"] == "split"


def test_the_client_reads_a_stream_and_may_leave_it(client: openai.OpenAI, runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPT, max_new_tokens=12)
    asked = {"model": "vqa", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "stream": True}
    left = client.chat.completions.create(**asked)
    next(iter(left))
    left.close()
    parts = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    said = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(said) == wanted.text
    assert parts[-1].usage is not None and parts[-1].usage.completion_tokens == 12


def test_the_clients_errors_are_the_ones_it_knows(client: openai.OpenAI, server: str) -> None:
    messages = [{"role": "user", "content": "what?"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=messages)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="vqa", messages=messages, n=2)
    assert wrong.value.param == "n"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_client_lists_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["vqa", "edge"]
    assert client.models.retrieve("vqa").owned_by == "msao-compile"


def test_sigterm_lets_the_running_answer_end_and_exits_with_0(deployment: Path) -> None:
    with serving(deployment) as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="vqa", messages=[{"role": "user", "content": PROMPT}], max_tokens=200, stream=True
        )
        parts = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        parts += list(stream)
        assert parts[-1].choices[0].finish_reason == "length"
        assert process.wait(10) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    request = next(line for line in lines if line["message"] == "request")
    assert (request["status"], request["completion_tokens"]) == (200, 200)
    assert any(line["message"] == "draining" for line in lines)


def test_https_is_served_with_a_certificate(deployment: Path, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with serving(deployment, "--tls-cert", certificate, "--tls-key", key) as (url, _):
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"{url}/readyz", context=trusting, timeout=10) as reply:
            assert json.load(reply)["status"] == "ready"
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/readyz", timeout=10)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(here, False).sign(key, hashes.SHA256())
    )  # fmt: skip
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_what_still_runs_after_the_drain_is_cut(deployment: Path) -> None:
    with serving(deployment, "--drain", 0, "--quiet") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
        stream = client.chat.completions.create(
            model="vqa", messages=[{"role": "user", "content": PROMPT}], max_tokens=200, stream=True
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None and not [line for line in process.stderr if '"request"' in line]
