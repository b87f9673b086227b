"""Attacks on topics: traps P1 to P7 and the CVEs that they name. What a device may say, hear and leave behind."""

from collections.abc import Callable

from device_sim.attacks.ground import Attack, Finding, Ground
from gateway.broker.packets import Will, encode_publish

REFUSED = 0x80
QUIET_S = 0.5  # how long a message that must not come is waited for


def foreign_will(ground: Ground) -> Finding:
    observer = ground.observer()
    client = ground.client(ground.device("p1-b"))
    answer = client.connect("p1-b", will=Will("devices/p1-a/state", b"p1-boo", 1, True))
    client.close()
    if observer.heard(b"p1-boo", 2 * QUIET_S) is not None:
        return Finding(False, f"{answer}, and the will was delivered on the other device's topic")
    return Finding(not answer.is_admitted, str(answer))


def retained_is_no_gift(ground: Ground) -> Finding:
    observer = ground.observer()
    observer.publish("broadcast/p2", b"p2-kept", 1, retain=True)
    stranger = ground.connected("p2-b")
    got = stranger.heard(b"p2-kept", QUIET_S)
    stranger.subscribe(("devices/p2-b/commands/#", 0))
    got = got or stranger.heard(b"p2-kept", QUIET_S)
    return Finding(got is None, "a stranger got a retained message it never asked for" if got else "nothing came")


def _filter(topic_filter: str) -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        thief = ground.connected("p3-thief")
        codes = thief.subscribe((topic_filter, 1))
        owner = ground.connected("p3-owner")
        owner.publish("devices/p3-owner/state", b"p3-private", 1)
        owner.is_alive()
        if thief.heard(b"p3-private", QUIET_S) is not None:
            return Finding(False, f"SUBACK {codes}, and another device's message was delivered")
        if not codes:
            return Finding(True, "the connection was closed")
        return Finding(codes == [REFUSED], f"SUBACK {codes[0]:#04x}, nothing delivered")

    return run


def shared_thief(ground: Ground) -> Finding:
    owner, thief = ground.connected("p3-shared"), ground.connected("p3-shared-thief")
    owner.subscribe(("devices/p3-shared/commands/#", 1))
    codes = thief.subscribe(("$share/g/devices/p3-shared/commands/#", 1))
    service, missing = ground.observer(), 0
    for number in range(6):
        service.publish("devices/p3-shared/commands/x", b"p3-%d" % number, 1)
        missing += owner.heard(b"p3-%d" % number, QUIET_S * 2) is None
    if missing:
        return Finding(False, f"SUBACK {codes}, and {missing} of 6 commands did not reach their device")
    return Finding(codes in ([], [REFUSED]), f"SUBACK {codes}, every command reached its device")


def quality_of_service(ground: Ground) -> Finding:
    device, service, wrong = ground.connected("p4-a"), ground.observer(), []
    for granted in (0, 1):
        device.subscribe(("devices/p4-a/commands/x", granted))
        for published in (0, 1):
            payload = b"p4-%d%d" % (granted, published)
            service.publish("devices/p4-a/commands/x", payload, published)
            message = device.heard(payload)
            if message is None or message.qos != min(granted, published):
                wrong.append(f"published {published}, granted {granted}: {message.qos if message else 'nothing'}")
    return Finding(not wrong, "; ".join(wrong) or "always the lower one")


def retained_outlives_the_right(ground: Ground) -> Finding:
    ground.observer().publish("broadcast/old", b"p5-old", 1, retain=True)
    ground.target.narrow_rules(True)
    try:
        device = ground.connected("p5-a")
        codes = device.subscribe(("broadcast/#", 0))
        got = device.heard(b"p5-old", 2 * QUIET_S)
    finally:
        ground.target.narrow_rules(False)
    return Finding(got is None, f"SUBACK {codes}, " + ("the retained message came" if got else "nothing came"))


def subscription_outlives_the_right(ground: Ground) -> Finding:
    service, device = ground.observer(), ground.connected("p5-b")
    device.subscribe(("broadcast/#", 0))
    ground.target.narrow_rules(True)
    try:
        got = None
        for number in range(3):  # a plugin that looks at its files once a second has time to
            service.publish("broadcast/x", b"p5-%d" % number)
            got = device.heard(b"p5-%d" % number, 2 * QUIET_S)
    finally:
        ground.target.narrow_rules(False)
    return Finding(got is None, "still delivered after the right was taken" if got else "nothing came any more")


def empty_rules(ground: Ground) -> Finding:
    ground.target.empty_rules()
    try:
        thief, owner = ground.knock_in("p6-thief"), ground.knock_in("p6-owner")
        if thief is None or owner is None:
            return Finding(True, "nobody is let in")
        codes = thief.subscribe(("devices/p6-owner/#", 0))
        owner.publish("devices/p6-owner/state", b"p6-private")
        got = thief.heard(b"p6-private", 2 * QUIET_S)
    finally:
        ground.target.narrow_rules(False)
    return Finding(got is None, f"SUBACK {codes}, " + ("everything is open" if got else "nothing came"))


def _bad_name(raw: bytes) -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        client = ground.connected("p7-a")
        client.send(encode_publish(raw, b"p7", 0, False, False, 0))
        is_closed = client.is_closed_within(2.0)
        return Finding(is_closed, "closed" if is_closed else "still connected")

    return run


def _foreign_publish(topic: str, retain: bool) -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        observer, device = ground.observer(), ground.connected("p7-b")
        device.publish(topic, b"p7-forged", 1, retain=retain)
        device.is_alive(1.0)
        got = observer.heard(b"p7-forged", QUIET_S)
        return Finding(got is None, "delivered under the other's name" if got else "nothing was delivered")

    return run


FILTERS = ("#", "+/+/#", "devices/+/state", "devices/p3-owner/#", "$SYS/#")
BAD_NAMES = ((b"devices/+/x", "a wildcard"), (b"", "nothing"), (b"devices/\xff", "bad UTF-8"), (b"a/\0", "U+0000"))

ATTACKS = (
    Attack("P1", "a will on another's topic", "refused at CONNECT, never delivered", foreign_will),
    Attack("P2", "retained messages for a stranger", "only to who subscribed", retained_is_no_gift),
    *(Attack("P3", f"subscribe to {name}", "SUBACK 0x80", _filter(name)) for name in FILTERS),
    Attack("P3", "a $share thief", "refused, and steals nothing", shared_thief),
    Attack("P4", "delivered QoS", "the lower of published and granted", quality_of_service),
    Attack("P5", "retained, CVE-2018-12546", "judged by the rights of now", retained_outlives_the_right),
    Attack("P5", "subscribed, CVE-2021-34434", "does not outlive the right", subscription_outlives_the_right),
    Attack("P6", "empty rules, CVE-2018-12550", "deny, or the old rules stay", empty_rules),
    *(Attack("P7", f"a topic that is {what}", "the connection is closed", _bad_name(raw)) for raw, what in BAD_NAMES),
    Attack("P7", "publish as another", "dropped", _foreign_publish("devices/p7-a/telemetry/x", False)),
    Attack("P7", "publish to all", "dropped, not retained", _foreign_publish("broadcast/p7", True)),
)
