"""Settings: where they come from, which wins, and what an error about them must never show."""

from __future__ import annotations

from pathlib import Path

import pytest

from domain import Misconfigured
from workers.settings import RedisSettings, Settings, load

SECRET = "s3cr3t-pa55"


def code_and_cause(environ: dict[str, str], *, toml: Path | None = None, **flags: object) -> tuple[str, str]:
    with pytest.raises(Misconfigured) as raised:
        load(environ, flags={name.replace("__", "."): value for name, value in flags.items()}, toml=toml)
    return raised.value.code, str(raised.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "muster.toml"
    path.write_text('namespace = "from-toml"\n[redis]\nurl = "redis://toml:1"\n[worker]\nthreads = 7\n', "utf-8")
    return path


def test_without_anything_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no variable, no flag: the defaults are in force."""
    monkeypatch.chdir(tmp_path)

    assert load({}) == Settings()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(toml: Path) -> None:
    """Flag, then environment, then file, then default; each setting for itself."""
    environ = {"MUSTER_NAMESPACE": "from-env", "MUSTER_REDIS__URL": "redis://env:3", "MUSTER_WORKER__PROCESSES": "5"}

    settings = load(environ, flags={"redis.url": "redis://flag:2", "environment": None}, toml=toml)

    assert settings.redis.url == "redis://flag:2"
    assert settings.namespace == "from-env"
    assert (settings.worker.processes, settings.worker.threads) == (5, 7)
    assert settings.environment == "dev"


def test_a_file_may_be_named_by_a_variable_or_lie_in_the_working_directory(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MUSTER_CONFIG names it, else `muster.toml` here is read; one that is named must be there."""
    monkeypatch.chdir(tmp_path)

    assert load({}).namespace == "from-toml"
    assert load({"MUSTER_CONFIG": str(toml)}).namespace == "from-toml"
    assert code_and_cause({"MUSTER_CONFIG": str(tmp_path / "none.toml")})[0] == "SETTING_INVALID"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MUSTER_NAMESPACES", "namespace"),
        ("MUSTER_REDIS__URI", "redis.url"),
        ("MUSTER_WORKER__LEASE_TTL", "worker.lease_ttl_ms"),
        ("MUSTER_REDIS_URL", "redis.url"),
    ],
)
def test_an_unknown_variable_is_an_error_with_a_suggestion(name: str, nearest: str) -> None:
    """A setting that would be ignored in silence is named, with the nearest one there is."""
    code, text = code_and_cause({name: "x"})

    assert code == "SETTING_UNKNOWN"
    assert f"did you mean {nearest!r}?" in text


def test_an_unknown_key_in_the_file_is_an_error_too(tmp_path: Path) -> None:
    """What is like nothing known brings the list of all settings."""
    path = tmp_path / "muster.toml"
    path.write_text("[zzz]\nqqq = 1\n", "utf-8")

    code, text = code_and_cause({}, toml=path)

    assert code == "SETTING_UNKNOWN"
    assert "'zzz.qqq'" in text
    assert "redis.url" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUSTER_WORKER__THREADS", "0"),
        ("MUSTER_WORKER__THREADS", "many"),
        ("MUSTER_WORKER__LEASE_TTL_MS", "499"),
        ("MUSTER_WORKER__BEAT_MS", "1.5"),
        ("MUSTER_REDIS__TIMEOUT_S", "-1"),
        ("MUSTER_REDIS__TIMEOUT_S", "0"),
        ("MUSTER_PARTITIONS", "-3"),
        ("MUSTER_PARTITIONS", ""),
        ("MUSTER_DURABILITY", "disk"),
        ("MUSTER_DURABILITY", "replicated(0)"),
    ],
)
def test_a_value_out_of_its_range_is_an_error_that_names_the_setting(name: str, value: str) -> None:
    """The cause says which setting, and what it should be."""
    code, text = code_and_cause({name: value})

    assert code == "SETTING_INVALID"
    assert name.rpartition("__")[2].removeprefix("MUSTER_").lower() in text


@pytest.mark.parametrize("text", ["a = ", "[redis\n", 'namespace = "a"\nnamespace = "b"\n', "\xff\x00"])
def test_a_file_that_is_no_toml_is_an_error(tmp_path: Path, text: str) -> None:
    """It names the file, and where in it."""
    path = tmp_path / "muster.toml"
    path.write_bytes(text.encode("latin-1"))

    code, cause = code_and_cause({}, toml=path)

    assert code == "SETTING_INVALID"
    assert "muster.toml" in cause


@pytest.mark.parametrize("wrong", ["redis = 7\n", "worker = []\n", 'namespace = {a = "b"}\n'])
def test_a_value_of_another_shape_is_an_error(tmp_path: Path, wrong: str) -> None:
    """A section that is a value, or a value that is a section, is refused as what it is."""
    path = tmp_path / "muster.toml"
    path.write_text(wrong, "utf-8")

    assert code_and_cause({}, toml=path)[0] in ("SETTING_INVALID", "SETTING_UNKNOWN")


def test_a_setting_and_a_section_of_one_name_are_an_error() -> None:
    """A variable that treats a setting as a section names nothing that is known."""
    assert code_and_cause({"MUSTER_NAMESPACE__X": "1", "MUSTER_NAMESPACE": "a"})[0] == "SETTING_UNKNOWN"


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    """`_FILE` reads the value from a file, without the line end that editors add."""
    path = tmp_path / "url"
    path.write_text(f"redis://:{SECRET}@host:1\n", "utf-8")

    assert load({"MUSTER_REDIS__URL_FILE": str(path)}).redis.url == f"redis://:{SECRET}@host:1"
    code, text = code_and_cause({"MUSTER_REDIS__URL_FILE": str(tmp_path / "none")})
    assert code == "SETTING_INVALID"
    assert "MUSTER_REDIS__URL_FILE" in text


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/x@host:6379/0",
        f"redis://:{SECRET}#x@host:6379/0",
        f"redis://:x/{SECRET}@host:6379/0",
        f"redis://:x#{SECRET}@host:6379/0",
        f"redis://:x?{SECRET}@host:6379/0",
        f"redis://user:[{SECRET}@host:6379/0",
        f"redis://:{SECRET}@host:port",
        f"redis://:{SECRET}@host:99999999",
        f"http://:{SECRET}@host:1",
        f":{SECRET}@host",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_shown(url: str) -> None:
    """A password with a character that ends it early is the usual cause; no part of it is in the error."""
    code, text = code_and_cause({"MUSTER_REDIS__URL": url})

    assert code == "SETTING_INVALID"
    assert "redis.url" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@host:6379/0",
        f"rediss://user:{SECRET}@host:6380",
        f"unix://user:{SECRET}@/tmp/redis.sock?db=1",
        "redis://localhost",
        "redis://[::1]:6379/0",
        f"redis://:{SECRET}%2F%23@host:1/0",
        f"redis+sentinel://user:{SECRET}@a:26379,b:26379/main/0",
    ],
)
def test_addresses_that_redis_knows_are_taken(url: str) -> None:
    """All kinds of addresses, with and without users and passwords."""
    assert load({"MUSTER_REDIS__URL": url}).redis.url == url


def test_a_password_in_an_argument_is_refused() -> None:
    """Everybody on a host can read the arguments of its processes; a user's name in them is no secret."""
    code, text = code_and_cause({}, redis__url=f"redis://user:{SECRET}@host")

    assert code == "SETTING_INVALID"
    assert "MUSTER_REDIS__PASSWORD_FILE" in text
    assert SECRET not in text
    assert load({}, flags={"redis.url": "redis://user@host"}).redis.url == "redis://user@host"


def test_how_to_connect_is_set_one_by_one(tmp_path: Path) -> None:
    """User, password, TLS and Sentinels have settings of their own; secrets may lie in files, TLS files are names."""
    (tmp_path / "password").write_text(f"{SECRET}\n", "utf-8")
    environ = {
        "MUSTER_REDIS__URL": "rediss+sentinel://a,b/main",
        "MUSTER_REDIS__USERNAME": "worker",
        "MUSTER_REDIS__PASSWORD_FILE": str(tmp_path / "password"),
        "MUSTER_REDIS__TLS_CA_FILE": "ca.crt",
        "MUSTER_REDIS__TLS_CERT_FILE": "own.crt",
        "MUSTER_REDIS__TLS_KEY_FILE": "own.key",
        "MUSTER_REDIS__TLS_CHECK_HOSTNAME": "false",
        "MUSTER_REDIS__SENTINEL_USERNAME": "asker",
        "MUSTER_REDIS__SENTINEL_PASSWORD_FILE": str(tmp_path / "password"),
    }

    settings = load(environ)

    assert settings.connecting == RedisSettings(
        "rediss+sentinel://a,b/main",
        5.0,
        10.0,
        "worker",
        SECRET,
        "ca.crt",
        "own.crt",
        "own.key",
        False,
        "asker",
        SECRET,
    )
    assert load(settings.environ()) == settings
    assert SECRET not in f"{settings} {settings!r}"


def test_an_invalid_setting_beside_a_password_does_not_show_it() -> None:
    """Whatever else is wrong, the error is about that."""
    environ = {"MUSTER_REDIS__URL": f"redis://:{SECRET}@host:1"}
    for name, value in (("MUSTER_REDIS__TIMEOUT_S", "x"), ("MUSTER_REDIS__PASSWORT", SECRET), ("MUSTER_X", SECRET)):
        assert SECRET not in code_and_cause({**environ, name: value})[1]


def test_settings_travel_to_a_child_process_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor puts into the environment is what its worker reads from it."""
    monkeypatch.chdir(tmp_path)
    settings = load(
        {"MUSTER_PARTITIONS": "7", "MUSTER_WORKER__DRAIN_S": "1.5", "MUSTER_REDIS__URL": f"redis://:{SECRET}@h:1"},
        flags={"environment": "prod", "namespace": "a/b"},
    )

    assert load(settings.environ()) == settings
    assert load(Settings().environ()) == Settings()


@pytest.mark.parametrize("toml", ['[redis]\npassword = "of-another-server"\n[archive]\nurl = "/x"\n', "[redis\n"])
def test_a_child_process_has_no_setting_that_was_not_given_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str
) -> None:
    """A file where it runs says nothing to it, and does not keep it from starting, whatever is in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "muster.toml").write_text(toml)
    assert load(Settings().environ()) == Settings()
