"""The uplink against a cluster of three NATS nodes with JetStream, one of which dies."""

from __future__ import annotations

from pathlib import Path

from tests.gateway.uplink.conftest import Site
from tests.gateway.uplink.test_upstream import batch, in_order
from tests.gateway.uplink.upstreams import Consumer, Line, NatsCluster
from tests.support.gateway import wait_until
from tests.support.pki import Credential, Pki


def test_a_node_of_the_cluster_dies_during_the_replay_and_nothing_is_lost(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, consumer_identity: Credential
) -> None:
    """What the dead node had not acknowledged goes to another one; order per device holds in each lane."""
    count = 2000
    with (
        NatsCluster(tmp_path / "cluster", pki) as cluster,
        Line(cluster.ports[0]) as line,
        Consumer(cluster.ports[2], pki, consumer_identity) as consumer,
        Site(tmp_path, pki, gateway_identity, line.port, backlog_rate=1000, backlog_burst=10) as site,
    ):
        line.cut()
        site.take(*batch(count))
        line.mend()
        wait_until(lambda: len(consumer.messages) > count // 4, timeout_s=30)
        cluster.kill(0)
        line.target = cluster.ports[1]
        wait_until(lambda: len(consumer.unique()) == count, timeout_s=60)
        wait_until(lambda: site.report()["spool_messages"] == 0, timeout_s=30)
        assert in_order(consumer.envelopes)
        assert site.report()["connections"] >= 2
