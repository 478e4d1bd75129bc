"""Secrets stay where they are kept: no Snapshot, store or error holds one."""

from __future__ import annotations

import msgspec
import pytest

from drivetrain import DrivetrainError, project
from drivetrain.core.errors import ProjectError
from drivetrain.project import secrets
from drivetrain.project.snapshot import SecretRef

SECRET = "sk-live-0123456789abcdef"


@pytest.fixture
def root(make, small):
    settings = small["drivetrain.toml"] + (
        'proxy = "env:PROXY_URL"\n[providers.openai.headers]\nx-team = "support"\nx-api-token = "env:TOKEN"\n'
        '[keys.web]\nsecret = "file:secrets/web.key"\n'
    )
    return make({**small, "drivetrain.toml": settings, "secrets/web.key": SECRET + "\n", "workflows/x.pem": SECRET})


def test_no_snapshot_holds_a_secret(root, monkeypatch, tmp_path) -> None:
    for name in ("OPENAI_API_KEY", "PROXY_URL", "TOKEN"):
        monkeypatch.setenv(name, SECRET)
    snapshot = project.load(root)
    fields = {name: getattr(snapshot, name) for name in snapshot.__struct_fields__}
    text = repr(snapshot) + str(snapshot) + repr(fields)
    text += str(msgspec.json.encode({key: value for key, value in fields.items() if key not in ("workflows", "root")}))
    assert SECRET not in text
    stored = project.store(snapshot, tmp_path / "s")
    assert all(SECRET not in path.read_text() for path in stored.rglob("*") if path.is_file())


def test_what_is_missing_is_listed_without_failing(root) -> None:
    snapshot = project.load(root)
    absent = [str(one) for one in secrets.missing(snapshot, {"TOKEN": "x"})]
    assert absent == [
        "`providers.openai.key`: environment variable OPENAI_API_KEY is not set",
        "`providers.openai.proxy`: environment variable PROXY_URL is not set",
    ]
    (root / "secrets/web.key").unlink()
    assert "`keys.web.secret`: file secrets/web.key does not exist" in map(str, secrets.missing(snapshot, {}))


@pytest.mark.parametrize(
    "line",
    [
        f'key = "{SECRET}"',
        f'key = "env:{SECRET}"',
        f'key = "${{{SECRET}}}"',
        f'key = ["{SECRET}"]',
        f'key = {{ value = "{SECRET}" }}',
        f'kye = "{SECRET}"',
        f'proxy = "http://u:{SECRET}@h:1"',
        f'base_url = "https://u:{SECRET}@h/v1"',
        f'base_url = "https://h/v1?api_key={SECRET}"',
        f'headers = {{ authorization = "Bearer {SECRET}" }}',
        f'headers = "{SECRET}"',
        f'key_header = "{SECRET} x"',
        f'dialect = {{ key = "{SECRET}" }}',
        f'connections_max = "{SECRET}"',
    ],
)
def test_no_error_shows_a_secret_in_a_provider(make, small, line: str) -> None:
    name = line.partition(" ")[0]
    settings = "".join(one for one in small["drivetrain.toml"].splitlines(True) if not one.startswith(f"{name} ="))
    with pytest.raises(ProjectError) as caught:
        project.load(make({**small, "drivetrain.toml": f"{settings}{line}\n"}))
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.problems)
    assert SECRET not in str(msgspec.json.encode(caught.value.problems))


@pytest.mark.parametrize("line", [f'secret = "{SECRET}"', f'secert = "{SECRET}"', f'secret = "{SECRET}\n"'])
def test_no_error_shows_a_secret_of_a_key(make, small, line: str) -> None:
    with pytest.raises(ProjectError) as caught:
        project.load(make({**small, "drivetrain.toml": f"{small['drivetrain.toml']}[keys.web]\n{line}\n"}))
    assert SECRET not in str(caught.value)


def test_resolving(root) -> None:
    assert secrets.resolve(SecretRef("file:secrets/web.key"), root, {}, used_by="keys.web.secret") == SECRET
    assert secrets.resolve(SecretRef("env:A"), root, {"A": " x "}, used_by="k") == "x"
    for reference, environ, what in (
        ("env:A", {}, "is not set or empty"),
        ("env:A", {"A": "x\r\ny: z"}, "no HTTP header may carry"),
        ("file:absent.key", {}, "cannot be read"),
    ):
        with pytest.raises(DrivetrainError, match=what) as caught:
            secrets.resolve(SecretRef(reference), root, environ, used_by="keys.web.secret")
        assert "`keys.web.secret`" in str(caught.value)
