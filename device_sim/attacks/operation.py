"""Attacks on operation: traps R1 to R8 and the name of CVE-2017-7650. Revocation, dates and reloads, from outside."""

import time
from collections.abc import Callable
from datetime import timedelta

from device_sim.attacks.ground import Attack, Finding, Ground, polled
from gateway.broker.packets import Will

CUT_WITHIN_S = 2.0
STALE_BY = timedelta(days=30)
SHORT_LIFE_S = 3


def revoked_is_cut(ground: Ground) -> Finding:
    observer = ground.observer()
    client = ground.connected("r1-a", will=Will("devices/r1-a/state", b"r1-gone", 1, False))
    ground.target.revoke(ground.device("r1-a"))
    started = time.monotonic()
    is_cut = client.is_closed_within(CUT_WITHIN_S + 1)
    took = time.monotonic() - started
    answer = ground.knock(ground.device("r1-a"), "r1-a")
    will = observer.heard(b"r1-gone", 0.5)
    seen = f"{f'cut after {took:.2f} s' if is_cut else 'live session served on'}, then {answer}"
    return Finding(
        is_cut and took <= CUT_WITHIN_S and not answer.is_admitted and will is None,
        seen + (", and its will fired" if will else ""),
    )


def two_crls_in_a_second(ground: Ground) -> Finding:
    for name in ("r2-a", "r2-b"):
        ground.target.revoke(ground.device(name))
    answers = [ground.knock(ground.device(name), name) for name in ("r2-a", "r2-b")]
    return Finding(not any(answer.is_admitted for answer in answers), ", ".join(map(str, answers)))


def stale_crl(ground: Ground) -> Finding:
    site = ground.target.site
    site.ca.publish_crl(site.crl_file, age=STALE_BY)
    ground.target.reload()
    try:
        answer = ground.knock(ground.device("r3-a"), "r3-a")
    finally:
        ground.target.revoke()
    after = ground.knock(ground.device("r3-a"), "r3-a")
    return Finding(not answer.is_admitted and after.is_admitted, f"stale: {answer}, with a new one: {after}")


def revoked_issuing_ca(ground: Ground) -> Finding:
    site = ground.target.site
    site.ca.publish_crl(site.crl_file, is_issuing_revoked=True)
    ground.target.reload()
    try:
        answer = ground.knock(ground.device("r4-a"), "r4-a")
    finally:
        ground.target.revoke()
    return Finding(not answer.is_admitted, str(answer))


def ends_with_its_certificate(ground: Ground) -> Finding:
    identity = ground.target.site.ca.new("r5-a", lifetime=timedelta(seconds=SHORT_LIFE_S))
    client = ground.client(identity)
    if not client.connect("r5-a").is_admitted:
        return Finding(False, "a certificate that is still valid was refused")
    is_closed = client.is_closed_within(SHORT_LIFE_S + CUT_WITHIN_S)
    return Finding(is_closed, "ended with its certificate" if is_closed else "served on after its certificate's end")


def _wrong_dates(how: str) -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        answer = ground.knock(ground.target.site.ca.wrong(f"r6-{how}", how), f"r6-{how}")
        return Finding(not answer.is_admitted, str(answer))

    return run


def server_renewal(ground: Ground) -> Finding:
    def served() -> bytes:
        return ground.client(ground.device("r7-b")).socket.getpeercert(binary_form=True) or b""

    client, before = ground.connected("r7-a"), served()
    ground.target.renew_server()
    is_new = polled(lambda: served() != before, 3.0)
    lives = client.is_alive()
    return Finding(
        is_new and lives,
        f"{'the new certificate is served' if is_new else 'the old certificate is still served'}, "
        f"{'live sessions stay' if lives else 'live sessions were cut'}",
    )


def broken_reload(ground: Ground) -> Finding:
    client = ground.connected("r8-a")
    accepted = ground.target.spoil_server(True)
    time.sleep(0.3)  # what dies of it, dies now
    lives, answer = client.is_alive(), ground.knock(ground.device("r8-b"), "r8-b")
    ground.target.spoil_server(False)
    said = "said yes" if accepted else "said no"
    held = lives and answer.is_admitted
    return Finding(held, f"the reload {said}, live sessions {'stay' if lives else 'are gone'}, a newcomer: {answer}")


def wildcard_name(ground: Ground) -> Finding:
    answer = ground.knock(ground.target.site.ca.wrong("r9", "wildcard-name"), "+")
    return Finding(not answer.is_admitted, str(answer))


ATTACKS = (
    Attack("R1", "revoked while connected", "cut within 2 s, no will, no return", revoked_is_cut),
    Attack("R2", "two CRLs within a second", "both revocations hold", two_crls_in_a_second),
    Attack("R3", "a stale CRL", "nobody is let in until there is a new one", stale_crl),
    Attack("R4", "a revoked issuing CA", "its devices are refused", revoked_issuing_ca),
    Attack("R5", "a certificate that ends", "the session ends with it", ends_with_its_certificate),
    Attack("R6", "an expired certificate", "refused", _wrong_dates("expired")),
    Attack("R6", "a certificate of the future", "refused", _wrong_dates("not-yet-valid")),
    Attack("R7", "a new server certificate", "served at once, sessions stay", server_renewal),
    Attack("R8", "a reload with a broken file", "the old set serves on", broken_reload),
    Attack("P5", "a device named +, CVE-2017-7650", "refused", wildcard_name),
)
