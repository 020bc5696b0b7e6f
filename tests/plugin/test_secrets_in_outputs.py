"""One run in which everything that a server gets and says has secrets in it: none of them is in what the run leaves."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FAKE_ENGINE = Path(__file__).parent.parent / "fake_engine.py"
VARIABLES = {
    "API_KEYS": "in-api-keys-1",
    "DB_CREDENTIALS": "in-credentials-1",
    "PGPASSWORD": "in-pgpassword-1",
    "OPENAI_APIKEY": "in-apikey-1",
    "DATABASE_URL": "postgres://bob:in-a-url-1@host/x",
    "SETTINGS": '{"store": {"api_key": "in-json-1"}}',
}
FLAG = "-in-a-flag-1"
SECRETS = ("in-api-keys-1", "in-credentials-1", "in-pgpassword-1", "in-apikey-1", "in-a-url-1", "in-json-1", FLAG)


def test_no_secret_is_in_anything_that_a_run_leaves(project) -> None:
    command = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}", "--api-key", FLAG]
    settings = f"backend: command, debug_mode: true, env_vars: {VARIABLES}, launch_command: {command}"
    (project.path / "servers.yaml").write_text(f"servers: {{a: {{{settings}}}}}\n")
    project.files(
        test_1=f"""
        import pytest
        from helpers import kill
        SECRETS = {SECRETS}
        NOISE = ("", "\\x1b[1;36m", "\\x1b[0m\\x00", "\\x1b]0;title\\x07")
        TEXT = "\\n".join("Error: " + noise.join((one[:6], one[6:])) for one in SECRETS for noise in NOISE)

        def write(server, text):
            with open(server.log_path, "ab") as log: log.write(text.encode() + b"\\n")

        @pytest.mark.parametrize("value", SECRETS)
        def test_id(inference_server, value):
            write(inference_server, TEXT + "x" * 20_000 + value[:-1])
            raise ValueError("x" * (300 - len(value)) + value)
        def test_death(inference_server):
            write(inference_server, "x" * 9000 + TEXT)
            kill(inference_server)
            assert 0
        def test_profile(inference_server):
            try: inference_server.start_profile("-".join(SECRETS), tool="nsys")
            except Exception as error: pytest.fail(str(error), pytrace=False)
        def test_warning(inference_server):
            inference_server.on_warning and inference_server.warn("warned of " + TEXT)
            assert SECRETS[0] not in repr(inference_server.command())
        """
    )
    result = project.run("--junitxml=junit.xml", "--tb=line", "--infserver-summary=always")
    outputs = {"the terminal": result.stdout.str() + result.stderr.str()}
    for path in [project.path / "junit.xml", *(project.path / "server_logs").rglob("*")]:
        if path.is_file() and path.name not in ("server.log", "server.previous.log"):
            outputs[path.name] = path.read_text()
    wanted = {"run.json", "report.html", "trace.json", "command.txt", "environment.txt", "events.jsonl", "junit.xml"}
    assert wanted <= outputs.keys()
    assert "warned of" in outputs["the terminal"]
    assert "Error: ********" in outputs["report.html"]
    for name, text in outputs.items():
        seen = re.sub(r"\s", "", text)
        # What pytest itself shows of ids and messages is not ours.
        sought = () if name in ("the terminal", "junit.xml") else SECRETS
        assert not [secret for secret in sought if secret in seen], name
        assert "\x1b" not in text, name
        assert "\\u001b" not in text, name
    properties = re.findall(r"<property .*?/>", outputs["junit.xml"])
    assert properties
    ours = outputs["the terminal"].partition("= infserver =")[2].partition("= short test summary info =")[0]
    sections = re.findall(r"^-+ a: .*?(?=^_{3}|^-{3}|^/|\Z)", outputs["the terminal"], re.MULTILINE | re.DOTALL)
    assert sections
    for text in (ours, *sections, *properties):
        assert not [secret for secret in SECRETS if secret in text], text
