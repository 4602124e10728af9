"""`muster config`, validation by profile, and readiness of a live server."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given
from msgspec import structs

from domain import Misconfigured
from domain.log import create_store
from domain.log.store import library_source
from tests.own_server import OwnServer
from workers.cli import main
from workers.describing import descriptions
from workers.readiness import Seen, judged, ready, refuse_unless_ready
from workers.settings import ADDRESSES, PROFILES, SECRETS, Reading, Settings, load, shown
from workers.validation import judge

COMPOSE: Final = Path(__file__).parents[2] / "compose" / "compose.yaml"
SECRET: Final = "s3cr3t-pa55-of-many"
NAMES: Final = sorted(shown(Settings()))


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No muster.toml of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(str(exit.code or 0))
    return Ran(code, out.getvalue(), err.getvalue())


# -- where a value comes from ----------------------------------------------------------------------------------------


def test_show_says_of_every_value_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag, environment, a secret's file, the file, the profile, the default: each is named."""
    (tmp_path / "muster.toml").write_text("[worker]\nthreads = 7\n", "utf-8")
    (tmp_path / "password").write_text(f"{SECRET}\n", "utf-8")
    monkeypatch.setenv("MUSTER_NAMESPACE", "n")
    monkeypatch.setenv("MUSTER_REDIS__PASSWORD_FILE", str(tmp_path / "password"))

    ran = run("config", "show", "--profile", "production", "--environment", "e", "-o", "jsonl")

    rows = {row["setting"]: (row["value"], row["origin"]) for row in ran.rows}
    assert ran.code == 0
    assert sorted(rows) == NAMES
    assert rows["environment"] == ("e", "flag --environment")
    assert rows["namespace"] == ("n", "environment MUSTER_NAMESPACE")
    assert rows["redis.password"] == ("***", f"environment MUSTER_REDIS__PASSWORD_FILE ({tmp_path / 'password'})")
    assert rows["worker.threads"] == (7, "file muster.toml")
    assert rows["worker.beat_ms"] == (1000, "profile production")
    assert rows["worker.processes"] == (2, "default")


@pytest.mark.parametrize("name", sorted(SECRETS | ADDRESSES))
@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
def test_no_output_of_show_holds_a_secret(name: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords, tokens, and what stands in a URL."""
    value = f"redis://user:{SECRET}@elsewhere:1/3" if name in ADDRESSES else SECRET
    if name == "alerts.webhook":
        value = f"https://elsewhere/{SECRET}"
    monkeypatch.setenv("MUSTER_" + name.upper().replace(".", "__"), value)

    ran = run("config", "show", "-o", output)

    assert ran.code == 0
    assert SECRET not in ran.out + ran.err
    assert "***" in ran.out


def test_a_profile_stands_between_the_file_and_the_default(tmp_path: Path) -> None:
    """It may be named by the file itself; what anybody else gives wins over what it sets."""
    toml = tmp_path / "own.toml"
    toml.write_text('profile = "production"\n[worker]\nbeat_ms = 900\n', "utf-8")

    settings = load({}, toml=toml)

    assert (settings.worker.beat_ms, settings.worker.lease_ttl_ms) == (900, 5000)
    assert load({"MUSTER_PROFILE": "staging"}, toml=toml).worker.lease_ttl_ms == Settings().worker.lease_ttl_ms


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_of_every_profile_travel_to_a_child_process(profile: str) -> None:
    """Also what somebody took away that the profile would set."""
    for environ in ({"MUSTER_PROFILE": profile}, {"MUSTER_PROFILE": profile, "MUSTER_JOBS__VERIFY_EVERY_S": "null"}):
        settings = load(environ)
        assert load(settings.environ()) == settings


def test_the_schema_describes_every_setting() -> None:
    """It is JSON Schema, knows every key and no other, and marks what is secret."""
    told = json.loads(run("config", "schema").out)

    names = set()
    for name, about in told["$defs"]["Settings"]["properties"].items():
        section = about.get("$ref") or about.get("allOf", [{}])[0].get("$ref")
        keys = told["$defs"][section.rpartition("/")[2]]["properties"] if section else {"": about}
        names |= {f"{name}.{key}".rstrip(".") for key in keys}
        secret = {f"{name}.{key}" for key, one in keys.items() if one.get("writeOnly")}
        assert secret == {one for one in SECRETS if one.startswith(f"{name}.")}
    assert sorted(names) == NAMES
    assert told["$defs"]["WorkerSettings"]["additionalProperties"] is False


def test_every_setting_says_what_it_is_for() -> None:
    """In the schema and in `config show`, by the comment at its definition; what shares one has the same."""
    about = descriptions()

    assert sorted(about) == NAMES
    assert [name for name, text in about.items() if len(text) < 10 or text != text.strip()] == []
    assert about["worker.threads"] == "Batches one process works on at a time."
    assert about["health.lag_critical_s"] == about["health.lag_warning_s"]
    assert about["redis.password"] == "User and password on the server; each wins over the one in the URL."
    assert about["jobs.auto_repair"].endswith("head, cursor, registry. None of the log.")
    properties = json.loads(run("config", "schema").out)["$defs"]
    assert properties["WorkerSettings"]["properties"]["drain_s"]["x-reloadable"] is True
    assert properties["WorkerSettings"]["properties"]["threads"]["description"] == about["worker.threads"]
    (row,) = [one for one in json.loads(run("config", "show", "-o", "json").out) if one["setting"] == "worker.threads"]
    assert (row["description"], row["reloadable"]) == (about["worker.threads"], False)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[worker]\nlease_ttl_ms = 2\n", "worker.lease_ttl_ms", "from 500 up to 3600000, in milliseconds"),
        ("[worker]\ndrain_s = 20000\n", "worker.drain_s", "up to 3600, in seconds"),
        ("[worker]\nbeat_ms = 2000\n", "worker.beat_ms", "leases last 2000 ms"),
        ("[redis]\ntimeout_s = 500\n", "redis.timeout_s", "a batch that waits for it may take 120 s"),
        ("[redis]\ntimeout_s = nan\n", "redis.timeout_s", "a number above 0"),
        ("[redis]\ntimeout_s = inf\n", "redis.timeout_s", "a number above 0"),
        ("[redis]\ntimeout_s = -1\n", "redis.timeout_s", "a number above 0"),
        ("[redis]\nretry_for_s = nan\n", "redis.retry_for_s", "a number from 0"),
        ("[worker]\nfeed_keep_s = nan\n", "worker.feed_keep_s", "a number from 0"),
        ('[worker]\nthreads = "7"\n', "worker.threads", "a whole number from 1"),
        ("[worker]\nthreads = 1.0\n", "worker.threads", "a whole number from 1"),
        ("[worker]\nthreads = true\n", "worker.threads", "a whole number from 1"),
        ("[redis]\ntls_check_hostname = 1\n", "redis.tls_check_hostname", "true or false"),
        ("[redis]\nhost = {}\n", "redis.host", "there is no setting"),
        ("[zzz]\n", "zzz", "there is no setting"),
        ("[worker.threads]\n", "worker.threads", "a whole number from 1"),
        ('"redis.url" = "redis://h"\n', "redis.url", "there is no setting"),
        ('profile = "produktion"\n', "profile", "development, production, staging"),
        ('namespace = ""\n', "namespace", "is empty"),
        ('namespace = "a:b"\n', "namespace", "must be 1 to 64"),
        ('projections = "a.b.C"\n', "projections", "package.module:Class"),
        ('[jobs]\nurl = "redis://localhost:6379/0"\n[redis]\nurl = "redis://localhost/0"\n', "jobs.url", "another one"),
        ("[health]\nlag_warning_s = 90\n", "health.lag_warning_s", "above health.lag_critical_s"),
        ('[serve]\ntoken = "short"\n', "serve.token", "with a length from 16"),
        ('[log]\ndebug = "lease, fed"\n', "log.debug", "did you mean 'feed'"),
        ('[telemetry]\notlp_endpoint = "collector:4318"\n', "telemetry.otlp_endpoint", "such as http://collector:4318"),
        ('[telemetry]\notlp_endpoint = "http://h:x"\n', "telemetry.otlp_endpoint", "such as http://collector:4318"),
        ('[telemetry]\notlp_endpoint = "http://[h"\n', "telemetry.otlp_endpoint", "such as http://collector:4318"),
        ('[telemetry]\notlp_endpoint = "http://a:b@h"\n', "telemetry.otlp_endpoint", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("[telemetry]\nsample = 1.5\n", "telemetry.sample", "a number from 0 up to 1"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    """NaN, swapped units, contradictions, another type, a section for a value: nothing is taken for what it may be."""
    path = tmp_path / "own.toml"
    path.write_text(text, "utf-8")

    with pytest.raises(Misconfigured) as raised:
        load({}, toml=path)

    assert str(path) in raised.value.cause
    assert key in raised.value.cause
    assert words in raised.value.cause
    assert raised.value.facts["key"] == key


def test_one_setting_given_twice_in_the_environment_is_refused(tmp_path: Path) -> None:
    """Nobody would know which one counts."""
    (tmp_path / "url").write_text("redis://a", "utf-8")

    with pytest.raises(Misconfigured, match=r"MUSTER_REDIS__URL and MUSTER_REDIS__URL_FILE both give redis\.url"):
        load({"MUSTER_REDIS__URL": "redis://a", "MUSTER_REDIS__URL_FILE": str(tmp_path / "url")})


def test_check_names_everything_that_is_wrong_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the first; with exit code 3, and secrets stay unseen."""
    monkeypatch.setenv("MUSTER_WORKER__THREADS", "many")
    monkeypatch.setenv("MUSTER_REDIS__PASSWORT", SECRET)
    monkeypatch.setenv("MUSTER_SERVE__TOKEN", SECRET[:5])

    ran = run("config", "check", "-o", "jsonl")

    assert ran.code == 3
    assert [row["key"] for row in ran.rows] == ["redis.passwort", "serve.token", "worker.threads"]
    assert SECRET[:5] not in ran.out + ran.err


_VALUES: Final = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["nan", "-inf", "inf", "-1", "0", "1", "2", "1e3", "1e400", "9" * 400, "null", "true", "", " ", "redis://h/0"]
    ),
    st.integers().map(str),
    st.floats().map(str),
)
_KEYS: Final = st.one_of(st.sampled_from(NAMES), st.text("abcxyz._", min_size=1, max_size=12))
_TOML_VALUES: Final = st.recursive(
    st.one_of(st.integers().map(str), st.floats().map(str), st.booleans().map(lambda one: str(one).lower()))
    | st.text("abc1-: /", max_size=8).map(json.dumps)
    | st.just("1979-05-27T07:32:00Z"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | inner.map(lambda item: f"{{x = {item}}}")
    ),
    max_leaves=4,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=3))
def test_whatever_the_environment_holds_is_taken_or_refused(variables: dict[str, str]) -> None:
    """Never a traceback; and what is taken is in force, whole, with its origin."""
    environ = {"MUSTER_" + name.upper().replace(".", "__"): value for name, value in variables.items()}

    loaded = Reading(environ).loaded()

    assert (loaded.settings is None) == bool(loaded.problems)
    for problem in loaded.problems:
        assert problem.code in ("SETTING_UNKNOWN", "SETTING_INVALID")
        assert problem.cause.isprintable()
    if loaded.settings is not None:
        values = shown(loaded.settings)
        for name, text in variables.items():
            assert loaded.origins[name].startswith("environment MUSTER_")
            assert _means(text, values[name]) or name in ADDRESSES | SECRETS
        assert load(loaded.settings.environ()) == loaded.settings


@given(st.lists(st.tuples(_KEYS, _TOML_VALUES), max_size=3), st.binary(max_size=6))
def test_whatever_the_file_holds_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], noise: bytes
) -> None:
    """A file is read by the types it states; noise is no settings."""
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.toml"
    path.write_bytes("".join(f"{name} = {value}\n" for name, value in lines).encode() + noise)

    loaded = Reading({}, toml=path).loaded()

    for problem in loaded.problems:
        assert problem.code in ("SETTING_UNKNOWN", "SETTING_INVALID")
        assert str(path) in problem.cause
    if loaded.settings is not None:
        given_here = {name for name, origin in loaded.origins.items() if origin.startswith("file ")}
        assert given_here >= {name for name, _ in lines}


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, "a" * 100_000, "x = 'x"])
def test_a_file_without_end_is_refused(tmp_path: Path, text: str) -> None:
    """Brackets in brackets are no reason to fall over."""
    path = tmp_path / "deep.toml"
    path.write_text(text, "utf-8")

    with pytest.raises(Misconfigured) as raised:
        load({}, toml=path)

    assert len(str(raised.value)) < 4000


def _means(text: str, value: Any) -> bool:
    """Whether a setting is what its text says, and nothing that was made of it."""
    if isinstance(value, bool):
        return text.lower() in (("true", "1") if value else ("false", "0"))
    if isinstance(value, (int, float)):
        return float(text) == value
    return (value is None and text == "null") or value == text


# -- judged by profile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_our_own_presets_pass(profile: str) -> None:
    """Nobody who changes nothing is told off."""
    told = judge(load({"MUSTER_PROFILE": profile, "MUSTER_JOBS__URL": "redis://localhost:6379/1"}))

    assert {one.level for one in told} <= {"recommendation"}


def test_the_same_trouble_is_worse_in_production() -> None:
    """A recommendation to a developer, a warning in production; what shows everything is an error anywhere."""
    environ = {"MUSTER_REDIS__URL": "redis://elsewhere", "MUSTER_SERVE__HOST": "0.0.0.0"}

    levels = {
        profile: {one.key: one.level for one in judge(load({**environ, "MUSTER_PROFILE": profile}))}
        for profile in PROFILES
    }

    assert levels["development"]["redis.url"] == "recommendation"
    assert levels["production"]["redis.url"] == "warning"
    assert {told["serve.token"] for told in levels.values()} == {"error"}


# -- what a server says ----------------------------------------------------------------------------------------------

#: A server with nothing to be said against.
FIT: Final = Seen(
    info={
        "redis_version": "7.2.4",
        "role": "master",
        "aof_enabled": "1",
        "maxmemory": "1000",
        "used_memory": "10",
        "maxmemory_policy": "noeviction",
        "connected_slaves": "1",
        "maxclients": "10000",
    },
    config={
        "appendfsync": "everysec",
        "min-replicas-to-write": "1",
        "stream-node-max-bytes": "1024",
        "port": "0",
    },
    library=library_source(),
    functions_error=None,
    store_error=None,
    ahead_s=0.0,
    latency_s=0.001,
    is_guarded=True,
)


def said(seen: Seen, **environ: str) -> dict[str, str]:
    """What is said of a server in production: codes with their levels."""
    settings = load({"MUSTER_PROFILE": "production", "MUSTER_REDIS__URL": "rediss://h", **environ})
    found: dict[str, str] = {one.code: one.level for one in judged(settings, seen)}
    found.pop("FILES_TOO_FEW", None)  # which is about this process
    return found


def with_info(**fields: str) -> Seen:
    return structs.replace(FIT, info={**FIT.info, **fields})


def with_config(**fields: str) -> Seen:
    return structs.replace(FIT, config={**(FIT.config or {}), **{k.replace("_", "-"): v for k, v in fields.items()}})


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (FIT, {}),
        (with_info(redis_version="6.2.14"), {"SERVER_TOO_OLD": "error"}),
        (with_info(role="slave"), {"SERVER_READ_ONLY": "error"}),
        (with_info(aof_enabled="0"), {"SERVER_FORGETS": "error"}),
        (with_info(aof_last_write_status="err"), {"SERVER_CANNOT_PERSIST": "error"}),
        (with_info(aof_last_bgrewrite_status="err"), {"SERVER_CANNOT_PERSIST": "error"}),
        (with_info(rdb_last_bgsave_status="err"), {"SERVER_CANNOT_PERSIST": "error"}),
        (with_info(maxmemory_policy="volatile-lru"), {"SERVER_EVICTS": "error"}),
        (with_info(maxmemory="0"), {"SERVER_UNBOUNDED": "warning"}),
        (with_info(used_memory="800"), {"SERVER_NEARLY_FULL": "warning"}),
        (with_info(used_memory="900"), {"SERVER_NEARLY_FULL": "error"}),
        (with_info(used_memory="1000"), {"SERVER_OUT_OF_MEMORY": "error"}),
        (with_info(connected_slaves="0"), {"SERVER_UNREPLICATED": "warning"}),
        (with_info(connected_clients="8001"), {"SERVER_FULL": "warning"}),
        (with_config(appendfsync="no"), {"SERVER_SYNCS_LATE": "error"}),
        (with_config(min_replicas_to_write="0"), {"SERVER_UNREPLICATED": "warning"}),
        (with_config(stream_node_max_bytes="4096"), {"SERVER_WASTES": "recommendation"}),
        (with_config(stream_node_max_bytes="0"), {"SERVER_WASTES": "recommendation"}),
        (with_config(port="6379"), {"SETTING_RISKY": "warning"}),
        (structs.replace(FIT, config=None), {"SERVER_UNSEEN": "warning"}),
        (structs.replace(FIT, library="#!lua name=muster_1"), {"FUNCTIONS_OLD": "warning"}),
        (structs.replace(FIT, library=None), {}),
        (structs.replace(FIT, is_guarded=False), {"SERVER_UNGUARDED": "error"}),
        (structs.replace(FIT, ahead_s=3.0), {"CLOCKS_DIFFER": "warning"}),
        (structs.replace(FIT, ahead_s=-90.0), {"CLOCKS_DIFFER": "error"}),
        (structs.replace(FIT, latency_s=0.2), {"SERVER_SLOW": "warning"}),
    ],
)
def test_what_is_said_of_a_server_in_production(seen: Seen, expected: dict[str, str]) -> None:
    """One thing that is not as it should be is one thing that is said."""
    assert said(seen) == expected


def test_what_the_durability_asks_for_is_held_against_the_server() -> None:
    """`local` needs a sync before every answer, `replicated(2)` two replicas."""
    assert said(FIT, MUSTER_DURABILITY="local") == {"SERVER_SYNCS_LATE": "error"}
    assert said(with_config(appendfsync="always"), MUSTER_DURABILITY="local") == {}
    assert said(FIT, MUSTER_DURABILITY="replicated(2)") == {"SERVER_LACKS_REPLICAS": "error"}


# -- the live server -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    """A server as careless as its defaults are, with a store."""
    server = OwnServer(tmp_path / "server")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        yield server
    finally:
        server.stop()


def production(server: OwnServer, **environ: str) -> Settings:
    return load({"MUSTER_PROFILE": "production", "MUSTER_REDIS__URL": server.url, **environ})


def test_a_careless_server_is_not_fit_for_production_until_the_commands_were_run(server: OwnServer) -> None:
    """Each command that is printed is run as it stands; then no error is left, and workers would start."""
    settings = production(server)
    with server.client() as client:
        client.config_set("maxmemory", "200mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        before = {one.code: one for one in ready(settings)}
        assert {code for code, one in before.items() if one.level == "error"} == {"SERVER_EVICTS", "SERVER_FORGETS"}
        with pytest.raises(
            Misconfigured, match=r"SERVER_EVICTS.*SERVER_FORGETS|SERVER_FORGETS.*SERVER_EVICTS"
        ) as raised:
            refuse_unless_ready(settings)
        assert raised.value.code == "NOT_READY"
        refuse_unless_ready(structs.replace(settings, profile="staging"))

        for one in before.values():
            if one.command:
                words = shlex.split(one.command)
                assert words[:3] == ["redis-cli", "-u", server.url]
                client.execute_command(*words[3:])

        after = {one.code for one in ready(settings)}
        assert not after & {"SERVER_EVICTS", "SERVER_FORGETS", "SERVER_WASTES"}
        assert after >= {"SERVER_UNGUARDED", "SERVER_UNREPLICATED"}
        refuse_unless_ready(settings)


def test_the_stack_for_real_hosts_passes(tmp_path: Path) -> None:
    """compose.yaml: its settings as they stand, and a server as it starts one, even by the measure of production."""
    stack = yaml.safe_load(COMPOSE.read_text("utf-8"))
    settings = load(stack["x-muster"]["environment"])
    command = " ".join(stack["services"]["store"]["command"][1:]).replace("${VALKEY_MAXMEMORY:-1gb}", "1gb")

    assert settings.profile == "staging"
    assert {one.level for one in judge(settings)} == {"recommendation"}
    server = OwnServer(tmp_path / "as-in-compose", *command.split())
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        assert [one for one in ready(production(server)) if one.level == "error"] == []
    finally:
        server.stop()


def test_worker_run_refuses_a_careless_server_in_production(server: OwnServer) -> None:
    """Before anything is started; the profile may be a flag."""
    ran = run("worker", "run", "--profile", "production", "--url", server.url)

    assert (ran.code, "NOT_READY" in ran.err, "SERVER_FORGETS" in ran.err) == (3, True, True)


def test_whether_a_password_is_needed_is_tried(server: OwnServer) -> None:
    """A password in the settings proves nothing; a server that turns strangers away does."""
    with server.client() as client:
        assert "SERVER_UNGUARDED" in {one.code for one in ready(production(server))}
        client.config_set("requirepass", SECRET)
        told = ready(production(server, MUSTER_REDIS__PASSWORD=SECRET))
    assert "SERVER_UNGUARDED" not in {one.code for one in told}


def test_what_this_user_may_not_see_is_said_to_be_unseen(server: OwnServer) -> None:
    """A worker's user reads no configuration: that is no proof of anything."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "w", "on", f">{SECRET}", "~*", "+@all", "-config", "-function")
    told = {one.code for one in ready(production(server, MUSTER_REDIS__USERNAME="w", MUSTER_REDIS__PASSWORD=SECRET))}

    assert told >= {"SERVER_UNSEEN", "SERVER_FORGETS"}
    assert "FUNCTIONS_MISSING" not in told


def test_functions_and_store_that_are_missing_are_errors_in_every_profile(server: OwnServer) -> None:
    """Nothing works without them; `muster init` brings them back."""
    settings = load({"MUSTER_REDIS__URL": server.url})
    with server.client() as client:
        client.function_flush()
        (told,) = [one for one in ready(settings) if one.level == "error"]
        assert (told.code, told.command) == ("FUNCTIONS_MISSING", "muster init")
        assert run("init", "--url", server.url).code == 0
        assert [one for one in ready(settings) if one.level == "error"] == []
        client.flushall()
    assert [one.code for one in ready(settings) if one.level == "error"] == ["STORE_MISSING"]


def test_config_check_live_asks_the_server(server: OwnServer) -> None:
    """Exit 1 where there are errors; without the server, its error and nothing else."""
    found = run("config", "check", "--live", "--profile", "production", "--url", server.url, "-o", "jsonl")
    assert (found.code, {row["code"] for row in found.rows} >= {"SERVER_FORGETS"}) == (1, True)
    server.stop()
    gone = run("config", "check", "--live", "--url", server.url)
    assert (gone.code, "UNREACHABLE" in gone.err) == (5, True)
