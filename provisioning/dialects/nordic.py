"""nordic-at as a dialect: a Nordic modem behind a serial port, its AT commands (`nordic_at`) behind what a burn asks.

A modem that does not know #XRESET is only powered down and asked again over a newly opened port, and loses the ability
`reset`; one that does not know %JWT loses `proof`. Neither is ever counted as shown. A modem that is silent is an
interruption; one that refuses is a fault.
"""

import math
import secrets
from collections.abc import Callable
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric import ec

from mtls.csr import csr_public_key
from mtls.errors import Fault
from provisioning.dialects import nordic_at as at
from provisioning.dialects.declared import Ability, Declared
from provisioning.dialects.device import Conversation, Device, DeviceGone
from provisioning.dialects.nordic_at import Command, CredentialType, ModemFault
from provisioning.port import PortFault
from provisioning.possession import is_signed_by
from provisioning.session import BOOT_LIMIT_S, READ_SLICE_S, STEP_LIMIT_S, Port
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import ALGORITHM, Obj, Stage

GREETING_S = 0.5
GREETINGS = 3
SETTLE_S = 0.2  # the rest of what an earlier command printed
NONCE_BYTES = 16
KINDS = {Obj.CHAIN: CredentialType.CLIENT_CERTIFICATE, Obj.CA: CredentialType.ROOT_CA}

NORDIC_AT = Declared(
    name="nordic-at",
    device="a Nordic modem (nRF91) that takes AT commands on a serial port",
    abilities=frozenset(
        (
            *(Ability.DEVICE_KEY, Ability.CSR, Ability.READ_BACK, Ability.RESET, Ability.PROOF),
            *(Ability.ERASE, Ability.BURN, Ability.WATCH),
        )
    ),
    conditions={Ability.RESET: "firmware with #XRESET", Ability.PROOF: "firmware with %JWT"},
    max_bytes=dict.fromkeys(KINDS, at.MAX_CREDENTIAL_BYTES),
)


class ModemDevice(Device):
    """A modem on a port; its credentials stand in one security tag."""

    def __init__(self, talk: Conversation[Port]) -> None:
        self._tag = talk.order.security_tag
        super().__init__(NORDIC_AT, slot=f"security tag {self._tag}")
        self._port, self._trace, self._clock = talk.port, talk.trace, talk.clock
        self._lines = at.Lines()
        self._is_shell = False
        self._step_deadline = math.inf
        self._request = b""

    def begin_step(self, step: str) -> None:
        now = self._clock()
        self._step_deadline = now + STEP_LIMIT_S
        self._trace.note(step, now)

    # --- the line

    def _ask(self, command: Command) -> list[str]:
        """Send one command and return its lines; ModemFault when it is refused, DeviceGone when nobody answers."""
        data, now = command.data(shell=self._is_shell), self._clock()
        self._trace.line(">", data.decode("ascii"), now)
        deadline = min(now + command.timeout_s + self._port.write(data), self._step_deadline)
        while (now := self._clock()) < deadline:
            for line in self._lines.feed(self._port.read(min(deadline - now, READ_SLICE_S))):
                self._trace.line("<", line, self._clock())
                if command.take(line):
                    return command.lines
        raise DeviceGone(
            f"the modem did not answer {command.name}",
            hint="check power, cable and that nothing else uses the port, then burn the unit again",
        )

    def _drain(self) -> None:
        deadline = self._clock() + SETTLE_S
        while (now := self._clock()) < deadline:
            for line in self._lines.feed(self._port.read(deadline - now)):
                self._trace.line("|", line, now)

    def _greet(self, timeout_s: float) -> bool:
        """Whether a modem answers, in which of the two forms."""
        for self._is_shell in (False, True):
            with suppress(ModemFault, DeviceGone):
                self._ask(Command("AT", "AT", timeout_s))
                return True
        return False

    def _prepare(self) -> None:
        self._ask(at.error_codes())
        self._ask(at.go_offline())

    # --- who is there

    def hello(self) -> bool:
        self._drain()
        if not any(self._greet(GREETING_S) for _ in range(GREETINGS)):
            raise Fault(
                f"no modem on {self._port.name} answers AT",
                hint="check the port's name, the baud rate and the modem's power",
            )
        self._prepare()
        return False

    def look(self, timeout_s: float) -> Identity | None:
        try:
            return self.identify() if self._greet(timeout_s) else None
        except PortFault:
            raise
        except Fault:
            return None

    def identify(self) -> Identity:
        imei = at.imei(self._ask(at.identity("CGSN")))
        model = at.text(self._ask(at.identity("CGMM")), "model")
        firmware = at.text(self._ask(at.identity("CGMR")), "firmware")
        return Identity(model=model, hw=model, fw=firmware, sn=imei, uid=imei, rng="", algs=(ALGORITHM,))

    # --- key and CSR

    def _listed(self) -> dict[CredentialType, str]:
        return at.digests(self._ask(at.listing(self._tag)))

    def held_key(self) -> str:
        return self._listed().get(CredentialType.CLIENT_KEY, "")

    def make_key(self, device_id: str, held: str) -> ec.EllipticCurvePublicKey:
        for kind in self._listed():  # certificates of the key before go with it
            self._ask(at.delete(self._tag, kind))
        self._request = at.csr_der(self._ask(at.keygen(self._tag, device_id)))
        return csr_public_key(self._request, "the modem's CSR")

    def csr(self, device_id: str) -> bytes:
        return self._request

    # --- objects, reset, proof

    def write(self, obj: Obj, content: bytes, *, txn: str, before: Callable[[], None]) -> None:
        before()
        self._ask(at.write(self._tag, KINDS[obj], content.decode("ascii")))

    def holds(self, obj: Obj, content: bytes) -> bool:
        return self._listed().get(KINDS[obj]) == at.digest_of(content.decode("ascii"))

    def reset(self) -> None:
        try:
            self._ask(at.reset())
        except ModemFault:
            self.abilities -= {Ability.RESET}
            self._ask(at.power_off())
            self._port.reopen(BOOT_LIMIT_S)
        except (DeviceGone, PortFault):
            self._trace.note("the answer to the reset was lost", self._clock())
        self._wait_for_boot()
        if Ability.RESET in self.abilities and at.has_codes(self._ask(at.asked_codes())):
            raise Fault("the modem did not reset: +CMEE is as it was before", hint="look at its application firmware")
        self._prepare()

    def _wait_for_boot(self) -> None:
        deadline = self._clock() + BOOT_LIMIT_S
        while (now := self._clock()) < deadline:
            try:
                self._drain()
                if self._greet(GREETING_S):
                    return
            except PortFault:
                self._port.reopen(deadline - now)
        raise DeviceGone(f"the modem did not come back within {BOOT_LIMIT_S:g} s", hint="check its supply")

    def prove(self, stage: Stage, identity: Identity, key: ec.EllipticCurvePublicKey) -> bool:
        subject, nonce = f"provision-{int(stage)}-{identity.sn}", secrets.token_hex(NONCE_BYTES)
        try:
            lines = self._ask(at.prove(self._tag, subject, nonce))
        except ModemFault as refused:
            if refused.cme in at.NO_KEY:
                raise
            self.abilities -= {Ability.PROOF}
            return False
        signed, signature = at.proof(lines, subject, nonce)
        return is_signed_by(key, signature, signed)
