"""The brokers that a scenario can be run against: our gateway, mosquitto, stock amqtt, and one that runs already.

A `Broker` is what an operator can do: start, stop, cut off, and make it take a new CRL, new rules, a new server
certificate. Each does it in the broker's own way (`mqtt-gateway reload`, SIGHUP, a file that amqtt's plugin watches);
where a broker has no way, the call does what its documentation says and the report shows what came of it.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self

from device_sim.connection_faults import Endpoint
from device_sim.fleet.identities import Identity
from device_sim.stopping import held_back
from device_sim.targets.programs import END_TIMEOUT_S, Program, answers, command_named, free_port
from device_sim.targets.site import MAX_CONNECTIONS, MOSQUITTO_ACL, NARROW_MOSQUITTO_ACL, NARROW_POLICY, POLICY, Site
from mtls.errors import Fault
from mtls.keystore import write_public

RELOADING = "Reloading config."  # what mosquitto logs when it begins

LOOKS_EVERY_S = 1.5  # the plugin looks at its files once a second


class Broker(Protocol):
    """A broker under test and its operator."""

    name: str
    site: Site
    endpoint: Endpoint

    def start(self) -> None: ...
    def stop(self, *, is_killed: bool = False) -> None: ...
    def reload(self) -> bool: ...
    def process_id(self) -> int | None: ...
    def narrow_rules(self, narrow: bool) -> None: ...
    def empty_rules(self) -> None: ...


class Operator:
    """What is done the same way for every broker, from its `reload` and its files."""

    site: Site

    def reload(self) -> bool:
        """Have the broker read its files again; whether it said yes."""
        raise Fault("this broker cannot be told to reload")

    def revoke(self, *identities: Identity) -> None:
        """Put certificates on the CRL and have it taken."""
        self.site.ca.revoke(*identities)
        self.publish_crl()

    def publish_crl(self, **settings: Any) -> None:
        """Write a new CRL and have it taken."""
        self.site.ca.publish_crl(self.site.crl_file, **settings)
        self.reload()

    def renew_server(self) -> None:
        """A new server certificate with a new key."""
        self.site.ca.server(self.site.folder)
        self.reload()

    def spoil_server(self, is_spoilt: bool) -> bool:
        """Make the server certificate's file unreadable, or make it good again, and reload; whether it said yes."""
        if is_spoilt:
            write_public(self.site.server.cert_file, b"no certificate\n")
        else:
            self.site.ca.server(self.site.folder)
        return self.reload()

    def narrow_rules(self, narrow: bool) -> None:
        """Take the right to `broadcast` from devices, or give it back."""
        self.site.write_policy(NARROW_POLICY if narrow else POLICY)
        self.reload()

    def empty_rules(self) -> None:
        """An empty file of rules."""
        self.site.write_policy("")
        self.reload()


class ProcessBroker(Operator):
    """A broker as a process of ours on a port of 127.0.0.1."""

    name = ""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.endpoint = Endpoint("127.0.0.1", free_port(), str(site.ca.ca_file))
        self._program: Program | None = None

    def command(self) -> list[str]:
        """What to start; writes the configuration first."""
        raise Fault("this broker has no command")

    def start(self) -> None:
        """Start and wait until it listens."""
        command = self.command()
        with held_back():  # Popen that is interrupted leaves a process that nobody knows
            self._program = Program(command, self.site.folder / "broker.log")
        self._program.wait_until(self.is_ready, f"{self.name} serving on {self.endpoint}")

    def is_ready(self) -> bool:
        """Whether it serves."""
        return answers(self.endpoint.port)

    def stop(self, *, is_killed: bool = False) -> None:
        """End it, in order or by kill -9."""
        if self._program is not None:
            self._program.end(is_killed=is_killed)
            self._program = None

    def reload(self) -> bool:
        """SIGHUP; whether it lives on."""
        if self._program is None:
            return False
        self._program.signal(signal.SIGHUP)
        return True

    def process_id(self) -> int | None:
        """Of the broker; None while it does not run."""
        program = self._program
        return program.process.pid if program is not None and program.process.poll() is None else None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C too: __exit__ is not called for a start that did not return
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class OurGateway(ProcessBroker):
    """`mqtt-gateway run`."""

    def __init__(self, site: Site, tables: Mapping[str, Mapping[str, Any]] = {}) -> None:
        super().__init__(site)
        self.name = f"mqtt-gateway {version('mqtt-mtls-gateway')}"
        self._tables = tables
        self._starts = 0

    def command(self) -> list[str]:
        """`mqtt-gateway run`, on any port the first time and on the same one from then on."""
        self._starts = len(self.site.audit("started"))
        self.site.write_gateway_config(self.endpoint.port if self._starts else 0, self._tables)
        return [command_named("mqtt-gateway"), "run", "--config", str(self.site.config_file)]

    def start(self) -> None:
        """Start, and learn from its audit log where it listens."""
        super().start()
        port = int(self.site.audit("started")[-1]["addresses"][0].rpartition(":")[2])
        self.endpoint = replace(self.endpoint, port=port)

    def is_ready(self) -> bool:
        """Its audit log says so."""
        return len(self.site.audit("started")) > self._starts

    def reload(self) -> bool:
        """`mqtt-gateway reload`, which answers when the files are in force."""
        command = [command_named("mqtt-gateway"), "reload", "--config", str(self.site.config_file)]
        done = subprocess.run(command, capture_output=True, timeout=END_TIMEOUT_S, check=False)
        return done.returncode == 0


class Mosquitto(ProcessBroker):
    """mosquitto with client certificates, an ACL file and the CRL."""

    def __init__(self, site: Site, acl: str = MOSQUITTO_ACL) -> None:
        super().__init__(site)
        (site.folder / "acl").write_text(acl, encoding="utf-8")
        said = subprocess.run([command_named("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout
        self.name = " ".join((said.split("\n")[0].split() or ["mosquitto"])[:3])

    def command(self) -> list[str]:
        """mosquitto.conf as its documentation shows mutual TLS."""
        folder = self.site.folder.absolute()
        crl = folder / "issuing-crl.pem"
        self._write_crl(crl)
        user = "user root\n" if os.geteuid() == 0 else ""
        (folder / "mosquitto.conf").write_text(
            f"{user}listener {self.endpoint.port} 127.0.0.1\nmax_connections {MAX_CONNECTIONS}\n"
            f"cafile {self.site.ca.ca_file.absolute()}\ncertfile {folder}/server.crt\nkeyfile {folder}/server.key\n"
            f"crlfile {crl}\nrequire_certificate true\nuse_identity_as_username true\nacl_file {folder}/acl\n",
            encoding="utf-8",
        )
        return [command_named("mosquitto"), "-c", str(folder / "mosquitto.conf")]

    def reload(self) -> bool:
        """SIGHUP reads the ACL file and, in versions that do, the CRL; back when its log says so."""
        self._write_crl(self.site.folder / "issuing-crl.pem")
        program = self._program
        if program is None:
            return False
        before = program.said(RELOADING)
        program.signal(signal.SIGHUP)
        program.wait_until(lambda: program.said(RELOADING) > before, f"{self.name} reading its files again")
        return True

    def narrow_rules(self, narrow: bool) -> None:
        """Another ACL file."""
        (self.site.folder / "acl").write_text(NARROW_MOSQUITTO_ACL if narrow else MOSQUITTO_ACL, encoding="utf-8")
        self.reload()

    def empty_rules(self) -> None:
        """An empty ACL file."""
        (self.site.folder / "acl").write_text("", encoding="utf-8")
        self.reload()

    def _write_crl(self, path: Path) -> None:
        path.write_bytes(self.site.crl_file.read_bytes())


class StockAmqtt(ProcessBroker):
    """amqtt as it is, with our CertificateAclPlugin: amqtt alone has no identity from a certificate."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        try:
            self.name = f"stock amqtt {version('amqtt')} with CertificateAclPlugin"
        except PackageNotFoundError:
            raise Fault("amqtt is not installed", hint="pip install amqtt") from None

    def command(self) -> list[str]:
        """amqtt's own command with a configuration in YAML, of which JSON is a part."""
        folder = self.site.folder.absolute()
        listener = {
            "type": "tcp",
            "bind": f"127.0.0.1:{self.endpoint.port}",
            "ssl": True,
            "cafile": str(self.site.ca.ca_file.absolute()),
            "certfile": str(folder / "server.crt"),
            "keyfile": str(folder / "server.key"),
            "max_connections": MAX_CONNECTIONS,
        }
        plugin = {
            "policy_file": str(folder / "policy.toml"),
            "ca_file": str(self.site.ca.ca_file.absolute()),
            "crl_file": str(folder / "crl.pem"),
            "deny_file": str(folder / "deny.toml"),
        }
        settings = {
            "listeners": {"default": listener},
            "plugins": {"gateway.broker.plugin.CertificateAclPlugin": plugin},
        }
        (folder / "amqtt.yaml").write_text(json.dumps(settings), encoding="utf-8")
        return [command_named("amqtt"), "-c", str(folder / "amqtt.yaml")]

    def reload(self) -> bool:
        """The plugin looks at its files by itself; amqtt has no reload, and SIGHUP would end it."""
        time.sleep(LOOKS_EVERY_S)
        return True


BROKERS = {"gateway": OurGateway, "mosquitto": Mosquitto, "amqtt": StockAmqtt}


def broker_named(kind: str, folder: Path, tables: Mapping[str, Mapping[str, Any]] = {}) -> ProcessBroker:
    """A broker of one kind on a new site in `folder`; Fault for another kind. `tables` are our gateway's alone."""
    if kind not in BROKERS:
        raise Fault(f"there is no target {kind!a}", hint=f"one of: {', '.join(BROKERS)}")
    maker: Any = BROKERS[kind]
    site = Site.make(folder)
    broker: ProcessBroker = OurGateway(site, tables) if maker is OurGateway else maker(site)
    return broker
