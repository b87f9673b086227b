"""Reading a policy file: what it may say, and that every slip is a fault with file, line, table and key."""

import gc
import os
from pathlib import Path
from textwrap import dedent

import pytest

from gateway.policy import Policy
from gateway.policy.globs import Token, Wild
from gateway.policy.load import load_text
from gateway.policy.model import Action, Limits
from mtls.errors import ConfigFault
from mtls.identity import IdentityRule
from tests.gateway.policy.world import DEVICE, policy_of, role

FULL = """\
version = 1
[identity]
source = "san-uri"
pattern = "^a-[0-9]+$"
client_id = ["{id}", "{id}:*"]

[[issuer]]
subject_cn = "Line A CA"
spki_sha256 = "{spki}"
ids = ["a-*", "b-1"]

[[role]]
name = "device"
match = { id = "*", issuer = "Line A CA", "attr.site" = "hall-?", attr.kind = "x" }
client_id = ["", "*"]
publish = ["devices/{id}/telemetry/#",
           "devices/{attr.site}/+"]
retain = ["devices/{client_id}/state"]
will = ["w/{issuer}/{ou}"]
subscribe = ["devices/{id}/commands/#"]
receive = ["$SYS/x"]
deny = [
  { action = "publish", topic = "devices/{id}/raw/#" },
  { action = "subscribe", topic = "x" },
  { action = "connect" },
]
on_denied_publish = "disconnect"
will_on_revoke = "fire"
[role.limits]
publish_rate = 0.5
max_packet_bytes = 65536
max_sessions = 1
queue_messages = 1000
queue_full = "drop-newest"

[[role]]
name = "backend"
match = { ou = "services", o = "site" }
subscribe = ["devices/#"]
""".replace("{spki}", "ab" * 32)


def test_a_full_policy_is_read_as_written() -> None:
    """Every key of the file arrives where it belongs."""
    loaded = load_text(FULL, "p.toml")
    assert loaded.identity.source == "san-uri"
    assert loaded.identity.pattern.pattern == "^a-[0-9]+$"
    assert [glob.text for glob in loaded.client_ids] == ["{id}", "{id}:*"]
    assert loaded.client_ids[1].elements == (Token("id"), ":", Wild.MANY)
    (issuer,) = loaded.issuers
    assert (issuer.subject_cn, issuer.spki_sha256, issuer.line) == ("Line A CA", "ab" * 32, 7)
    assert [glob.text for glob in issuer.ids] == ["a-*", "b-1"]
    device, backend = loaded.roles
    assert (device.number, device.name, device.line) == (0, "device", 12)
    assert (backend.number, backend.name, backend.line) == (1, "backend", 36)
    assert {fact: glob.text for fact, glob in device.match.items()} == {
        "id": "*",
        "issuer": "Line A CA",
        "attr.site": "hall-?",
        "attr.kind": "x",
    }
    assert [glob.text for glob in device.client_ids or ()] == ["", "*"]
    assert device.limits == Limits(0.5, 65536, 1, 1000, "drop-newest")
    assert (device.on_denied_publish, device.will_on_revoke) == ("disconnect", "fire")
    assert (backend.client_ids, backend.limits, backend.on_denied_publish, backend.will_on_revoke) == (
        None,
        Limits(),
        None,
        None,
    )


def test_the_rules_of_a_full_policy() -> None:
    """Name, actions, line and levels of each rule, numbered through the file."""
    device, backend = load_text(FULL, "p.toml").roles
    rules = [(r.number, r.role, r.name, r.actions, r.line, r.denies) for r in (*device.rules, *backend.rules)]
    both = (Action.SUBSCRIBE, Action.RECEIVE)
    assert rules == [
        (0, 0, "publish[0]", (Action.PUBLISH,), 16, False),
        (1, 0, "publish[1]", (Action.PUBLISH,), 17, False),
        (2, 0, "retain[0]", (Action.RETAIN,), 18, False),
        (3, 0, "will[0]", (Action.WILL,), 19, False),
        (4, 0, "subscribe[0]", (Action.SUBSCRIBE,), 20, False),
        (5, 0, "receive[0]", (Action.RECEIVE,), 21, False),
        (6, 0, "deny[0]", (Action.PUBLISH,), 23, True),
        (7, 0, "deny[1]", both, 24, True),
        (9, 1, "subscribe[0]", both, 39, False),
    ]
    assert device.rules[0].levels == ("devices", Token("id"), "telemetry", "#")
    assert device.rules[1].levels == ("devices", Token("attr.site"), "+")
    assert device.rules[2].levels == ("devices", Token("client_id"), "state")
    assert device.rules[3].levels == ("w", Token("issuer"), Token("ou"))
    assert device.rules[6].text == "devices/{id}/raw/#"
    assert device.denies_connect is not None
    assert (device.denies_connect.name, device.denies_connect.line) == ("deny[2]", 25)
    assert (device.denies_connect.text, device.denies_connect.levels) == ("", ())
    assert backend.denies_connect is None


def test_what_is_left_out_has_the_strict_default() -> None:
    """No identity table: the usual pattern, the common name, and the id as client identifier."""
    loaded = load_text(DEVICE, "p.toml")
    assert loaded.identity == IdentityRule()
    assert [glob.text for glob in loaded.client_ids] == ["{id}"]
    assert loaded.issuers == ()
    only_source = load_text('version = 1\n[identity]\nsource = "san-dns"', "p.toml")
    assert only_source.identity == IdentityRule("san-dns")
    assert [glob.text for glob in only_source.client_ids] == ["{id}"]
    only_pattern = load_text('version = 1\n[identity]\npattern = "x"', "p.toml")
    assert only_pattern.identity.source == "cn"


SLIPS = {
    "unknown top key": (
        'version = 1\nroles = "x"',
        'site.toml:2: unknown key "roles" in the policy, the nearest known key is "role"',
    ),
    "unknown role key": (
        role('pubish = ["x"]'),
        'site.toml:6: unknown key "pubish" in [[role]] "r", the nearest known key is "publish"',
    ),
    "unknown identity key": (
        "version = 1\n[identity]\nclientid = []",
        'site.toml:3: unknown key "clientid" in identity of the policy, the nearest known key is "client_id"',
    ),
    "unknown issuer key": (
        'version = 1\n[[issuer]]\nsubject_cn = "CA"\nid = ["x"]',
        'site.toml:4: unknown key "id" in [[issuer]] "CA", the nearest known key is "ids"',
    ),
    "unknown limit": (
        role("[role.limits]\nmax_session = 1"),
        'site.toml:7: unknown key "max_session" in limits of [[role]] "r", the nearest known key is "max_sessions"',
    ),
    "unknown deny key": (
        role('deny = [\n{ action = "publish", topics = "x" }]'),
        'site.toml:7: unknown key "topics" in deny of [[role]] "r" number 1, the nearest known key is "topic"',
    ),
    "unknown fact": (
        role("", match='{ cn = "x" }'),
        'site.toml:5: unknown key "cn" in match of [[role]] "r", the nearest known key is "o',
    ),
    "attribute without name": (
        role("", match='{ attr = "x" }'),
        'site.toml:5: match of [[role]] "r" has no fact "attr"',
    ),
    "fact with a part": (
        role("", match='{ id = { x = "y" } }'),
        'site.toml:5: match of [[role]] "r" has no fact "id.x"',
    ),
    "no version": ('[identity]\nsource = "cn"', "site.toml:1: the policy has no version, write version = 1"),
    "later version": ("version = 2", "site.toml:1: version in the policy is 2, not a whole number from 1 to 1"),
    "true as version": ("version = true", "version in the policy is True, not a whole number from 1 to 1"),
    "no name": ('version = 1\n[[role]]\nmatch = { id = "*" }', 'site.toml:2: [[role]] number 1 has no "name"'),
    "empty name": (role("", name=""), 'site.toml:4: name in [[role]] "": the text is empty'),
    "long name": (
        role("", name="n" * 65),
        'site.toml:4: name in [[role]] "' + "n" * 65 + '": a name has 1 to 64 printable characters',
    ),
    "control character in a name": (role("", name="a\\u001b"), "a name has 1 to 64 printable characters"),
    "name twice": (
        role("") + '[[role]]\nname = "r"\nmatch = { id = "x" }',
        'site.toml:8: [[role]] "r" stands on line 3 already',
    ),
    "no match": ('version = 1\n[[role]]\nname = "r"', 'site.toml:2: [[role]] "r" matches nobody in particular'),
    "empty match": (role("", match="{}"), 'site.toml:5: [[role]] "r" matches nobody in particular'),
    "empty glob": (role("", match='{ id = "" }'), 'match.id in [[role]] "r": the glob is empty'),
    "open glob": (role("", match='{ id = "[a" }'), "match.id in [[role]] \"r\": '[a' opens a character set"),
    "number as glob": (role("", match="{ id = 1 }"), 'match.id in [[role]] "r" is a number, not a glob'),
    "match is a text": (role("", match='"*"'), 'site.toml:5: match of [[role]] "r" is a text, not a table'),
    "role is a table": ('version = 1\n[role]\nname = "r"', "site.toml:2: role in the policy is a table, not an array"),
    "role is a list of texts": ('version = 1\nrole = ["x"]', "[[role]] number 1 is a text, not a table"),
    "identity is a list": ("version = 1\nidentity = []", "identity of the policy is a list, not a table"),
    "topics are a text": (role('publish = "x"'), 'site.toml:6: publish in [[role]] "r" is a text, not a list of texts'),
    "a topic is a number": (role('publish = [\n"x",\n1]'), 'site.toml:8: publish[1] in [[role]] "r" is a number'),
    "a topic is a date": (role("publish = [2020-01-01]"), "is a date or time, not a text"),
    "a topic is true": (role("publish = [true]"), "is a truth value, not a text"),
    "topic with # inside": (role('publish = ["a/#/b"]'), "publish[0] in [[role]] \"r\": '#' stands before the end"),
    "empty topic": (role('will = [""]'), 'will[0] in [[role]] "r": a topic has no character'),
    "half a token": (role('publish = ["a/x{id}"]'), 'a token fills a whole topic level, "x{id}" does not'),
    "token and more": (role('publish = ["a/{id}x"]'), 'a token fills a whole topic level, "{id}x" does not'),
    "two tokens": (role('publish = ["{id}{ou}"]'), "a token fills a whole topic level"),
    "brace open": (role('publish = ["{id"]'), "a token fills a whole topic level"),
    "brace close": (role('publish = ["id}"]'), "a token fills a whole topic level"),
    "unknown token": (
        role('publish = ["{name}"]'),
        'no token "{name}"; there are {id}, {client_id}, {issuer}, {ou}, {attr.NAME}',
    ),
    "empty token": (role('publish = ["{}"]'), 'no token "{}"'),
    "attribute token without name": (role('publish = ["{attr.}"]'), 'no token "{attr.}"'),
    "shared": (
        role('subscribe = ["$share/g/x"]'),
        'subscribe[0] in [[role]] "r": shared subscriptions are no part of MQTT 3.1.1',
    ),
    "deny without action": (role('deny = [{ topic = "x" }]'), 'deny of [[role]] "r" number 1 has no "action"'),
    "deny without topic": (role('deny = [{ action = "will" }]'), 'deny of [[role]] "r" number 1 has no "topic"'),
    "deny connect with topic": (
        role('deny = [{ action = "connect", topic = "x" }]'),
        'site.toml:6: deny of [[role]] "r" number 1: connect has no topic',
    ),
    "deny connect with topic on its own line": (
        role('[[role.deny]]\naction = "connect"\ntopic = "x"'),
        'site.toml:8: deny of [[role]] "r" number 1: connect has no topic',
    ),
    "deny of a bad topic on its own line": (
        role('[[role.deny]]\naction = "will"\ntopic = "a+"'),
        'site.toml:8: topic in deny of [[role]] "r" number 1: a wildcard does not fill its level',
    ),
    "brace inside": (role('publish = ["{a{b}"]'), 'a token fills a whole topic level, "{a{b}" does not'),
    "brace closed inside": (role('publish = ["{a}b}"]'), 'a token fills a whole topic level, "{a}b}" does not'),
    "client id with a brace": (
        role('client_id = [\n"x",\n"{"]'),
        'site.toml:8: client_id[1] in [[role]] "r"',
    ),
    "issuer with an empty id on its own line": (
        'version = 1\n[[issuer]]\nsubject_cn = "CA"\nids = [\n"x",\n""]',
        'site.toml:6: ids[1] in [[issuer]] "CA": the glob is empty',
    ),
    "deny unknown action": (
        role('deny = [{ action = "write", topic = "x" }]'),
        'is "write", not one of "connect", "publish", "retain", "will", "subscribe", "receive"',
    ),
    "deny of a bad topic": (role('deny = [{ action = "will", topic = "a+" }]'), "a wildcard does not fill its level"),
    "unknown source": (
        'version = 1\n[identity]\nsource = "dn"',
        'site.toml:3: source in identity of the policy is "dn", not one of "cn", "san-uri", "san-dns"',
    ),
    "bad pattern": ('version = 1\n[identity]\npattern = "["', "site.toml:3: pattern in identity of the policy: not a"),
    "empty pattern": ('version = 1\n[identity]\npattern = ""', "pattern in identity of the policy: the text is empty"),
    "no client ids": (
        "version = 1\n[identity]\nclient_id = []",
        "site.toml:3: client_id in identity of the policy: the list is empty and would admit nobody",
    ),
    "no client ids of a role": (role("client_id = []"), 'client_id in [[role]] "r": the list is empty'),
    "client id of itself": (role('client_id = ["{client_id}"]'), "holds a brace that is no known token"),
    "issuer without name": ('version = 1\n[[issuer]]\nids = ["*"]', 'issuer]] number 1 has no "subject_cn"'),
    "issuer without ids": ('version = 1\n[[issuer]]\nsubject_cn = "CA"', '[[issuer]] "CA" names no ids'),
    "issuer with empty ids": ('version = 1\n[[issuer]]\nsubject_cn = "CA"\nids = []', '[[issuer]] "CA" names no ids'),
    "issuer with an empty id": ('version = 1\n[[issuer]]\nsubject_cn = "CA"\nids = [""]', "the glob is empty"),
    "short key hash": (
        'version = 1\n[[issuer]]\nsubject_cn = "CA"\nspki_sha256 = "ab"\nids = ["*"]',
        'site.toml:4: spki_sha256 in [[issuer]] "CA": "ab" is not 64 lower-case hex digits',
    ),
    "upper-case key hash": (
        f'version = 1\n[[issuer]]\nsubject_cn = "CA"\nspki_sha256 = "{"AB" * 32}"\nids = ["*"]',
        "is not 64 lower-case hex digits",
    ),
    "rate 0": (
        role("limits = { publish_rate = 0 }"),
        'publish_rate in limits of [[role]] "r" is 0, not a number above 0',
    ),
    "rate below 0": (role("limits = { publish_rate = -1.5 }"), "is -1.5, not a number above 0"),
    "rate nan": (role("limits = { publish_rate = nan }"), "is nan, not a number above 0"),
    "rate inf": (role("limits = { publish_rate = inf }"), "is inf, not a number above 0"),
    "rate true": (role("limits = { publish_rate = true }"), "is True, not a number above 0"),
    "rate text": (role('limits = { publish_rate = "20" }'), 'is "20", not a number above 0'),
    "sessions 0": (role("limits = { max_sessions = 0 }"), "is 0, not a whole number from 1 to 1000000000"),
    "sessions true": (role("limits = { max_sessions = true }"), "is True, not a whole number"),
    "sessions 1.0": (role("limits = { max_sessions = 1.0 }"), "is 1.0, not a whole number"),
    "queue too long": (role("limits = { queue_messages = 1000000001 }"), "not a whole number from 1 to 1000000000"),
    "packet too large": (role("limits = { max_packet_bytes = 268435461 }"), "not a whole number from 1 to 268435460"),
    "queue full": (role('limits = { queue_full = "block" }'), 'is "block", not one of "drop-oldest", "drop-newest"'),
    "on denied": (role('on_denied_publish = "ignore"'), 'is "ignore", not one of "drop", "disconnect"'),
    "on revoke": (role('will_on_revoke = "keep"'), 'is "keep", not one of "fire", "drop"'),
    "on denied is a number": (role("on_denied_publish = 1"), "is 1, not one of"),
    "no TOML": ("version = ", "site.toml: not valid TOML: Invalid value (at end of document)"),
    "key twice": ("version = 1\nversion = 1", "site.toml: not valid TOML: "),
    "deep": ("x = " + "[" * 5000, "site.toml: not valid TOML: nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_is_a_fault_that_names_its_place(text: str, message: str) -> None:
    """One lower-case sentence with file and line, and a hint."""
    with pytest.raises(ConfigFault) as caught:
        load_text(text, "site.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("site.toml:")
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 78


def test_the_largest_limits_are_allowed() -> None:
    """The twins of the values that are too large."""
    loaded = load_text(
        role("limits = { queue_messages = 1000000000, max_packet_bytes = 268435460, publish_rate = 1 }"), "p.toml"
    )
    assert loaded.roles[0].limits == Limits(1.0, 268435460, None, 1000000000, None)
    assert isinstance(loaded.roles[0].limits.publish_rate, float)
    assert load_text(role("", name="n" * 64), "p.toml").roles[0].name == "n" * 64


def test_a_hint_tells_the_known_keys_or_the_next_command() -> None:
    """What to do next stands beside the fault."""
    with pytest.raises(ConfigFault) as caught:
        load_text("version = 1\nrol = 1", "p.toml")
    assert caught.value.hint == "known keys: version, identity, issuer, role"
    with pytest.raises(ConfigFault) as caught:
        load_text("version = 3", "p.toml")
    assert caught.value.hint == "mend the line, then run `mqtt-gateway check-config`"
    with pytest.raises(ConfigFault) as caught:
        load_text(role("", match="{}"), "p.toml")
    assert caught.value.hint == 'write match = { id = "*" } for all'
    for text, hint in (
        ("version = ", "mend the line that is named"),
        ("x = " + "[" * 5000, "a policy has four levels"),
        ("", "it would deny all: start from examples/policy.toml"),
        (issuers(("CA", ""), ("CA", "")), "join the two, or give each its own spki_sha256"),
    ):
        with pytest.raises(ConfigFault) as caught:
            load_text(text, "p.toml")
        assert caught.value.hint == hint


def issuers(*rows: tuple[str, str]) -> str:
    tables = (
        f'[[issuer]]\nsubject_cn = "{name}"\nids = ["*"]\n' + (f'spki_sha256 = "{spki}"\n' if spki else "")
        for name, spki in rows
    )
    return "version = 1\n" + "".join(tables)


def test_an_issuer_named_twice_needs_two_keys() -> None:
    """Two CAs of one name are told apart by their keys or not at all."""
    one, two = "1" * 64, "2" * 64
    assert len(load_text(issuers(("CA", one), ("CA", two), ("CB", "")), "p.toml").issuers) == 3
    for rows in ([("CA", ""), ("CA", "")], [("CA", one), ("CA", "")], [("CA", ""), ("CA", one)], [("CA", one)] * 2):
        with pytest.raises(ConfigFault, match=r'\[\[issuer\]\] "CA" stands on line 2 already'):
            load_text(issuers(*rows), "p.toml")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"], ids=["nothing", "blank", "comment"])
def test_cve_2018_12550_an_empty_policy_is_refused(tmp_path: Path, text: str) -> None:
    """CVE-2018-12550: mosquitto took an empty ACL file for no ACL file and allowed everything."""
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigFault, match=r"policy\.toml:1: the policy is empty") as caught:
        Policy.load(path)
    assert caught.value.hint


def test_a_policy_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: each says which file."""
    for path, message in (
        (tmp_path / "missing.toml", "missing.toml does not exist"),
        (tmp_path, "is not a regular file|cannot read"),
    ):
        with pytest.raises(ConfigFault, match=message):
            Policy.load(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"version = 1\n\xff")
    with pytest.raises(ConfigFault, match=r"binary\.toml: byte 12 is not UTF-8"):
        Policy.load(binary)


def test_a_policy_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    """64 MiB of blanks are not read to the end."""
    path = tmp_path / "large.toml"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 64 * 1024 * 1024 + 1)
    with pytest.raises(ConfigFault, match="larger than 67108864 bytes"):
        Policy.load(path)


def test_the_version_is_the_start_of_the_digest(tmp_path: Path) -> None:
    """Twelve hex digits that anyone can compare with sha256sum."""
    path = tmp_path / "policy.toml"
    path.write_text("version = 1\n")
    policy = Policy.load(path)
    assert policy.version == "dbab12665d98"
    path.write_text("version = 1 \n")
    assert Policy.load(path).version != policy.version
    assert policy.file == str(path)


@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
def test_loading_leaves_the_collector_as_it_was(tmp_path: Path, enabled: bool) -> None:
    """The pause of the cyclic collector ends with the load, also with a failed one."""
    path = tmp_path / "policy.toml"
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        for text in ("version = 1\n", "version = 2\n"):
            path.write_text(text)
            try:
                Policy.load(path)
            except ConfigFault:
                assert text == "version = 2\n"
            assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_a_policy_without_roles_or_issuers_warns() -> None:
    """It loads, it denies, and it says so."""
    policy = policy_of("version = 1")
    assert policy.warnings == (
        "site.toml: no [[role]]: every connection is refused",
        "site.toml: no [[issuer]]: every trusted issuer may name every id",
    )
    assert policy_of(FULL).warnings == ()
    assert policy_of(dedent(DEVICE)).warnings == ("site.toml: no [[issuer]]: every trusted issuer may name every id",)
