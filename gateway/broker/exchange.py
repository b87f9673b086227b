"""The exchange: who is subscribed to what, what is retained, and where a permitted message goes.

Pure bookkeeping over the subscription index, the retained messages and the session table. It owns no connection and no
socket. Receiving is judged for every target of every route; a route is remembered together with `version`, which
grows whenever a subscription or a right changes, so that nothing is ever delivered on yesterday's permission.

Spec: MQTT 3.1.1 sections 3.3.1.3 (retain), 3.3.5 (overlapping subscriptions), 3.8.4 (subscribe), 4.7 (topics).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.broker.host import Route, Upward
from gateway.broker.routing import RetainedIndex, SubscriptionIndex
from gateway.broker.session_table import SessionTable
from gateway.broker.sessions import Message, Session
from gateway.policy import Action, Decision
from mtls.errors import Reason

SUBACK_FAILURE = 0x80
RETAINED_OVERHEAD = 512  # bytes of objects and index that one retained message costs beside topic and payload
RETAINED_SHARE = 4  # one identity may retain a quarter of retained_max_bytes: it must not keep all others from it
MAX_STORED_SESSIONS = 1000  # of one identity without a connection; the oldest is forgotten beyond it


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Bounds of what clients may make the exchange remember."""

    max_topic_levels: int
    max_subscriptions_per_session: int
    retained_max_bytes: int


class Exchange:
    """Sessions, subscriptions and retained messages of one broker."""

    def __init__(self, limits: ExchangeLimits) -> None:
        self.limits = limits
        self.sessions = SessionTable()
        self.subscriptions: SubscriptionIndex[Session] = SubscriptionIndex()
        self.retained: RetainedIndex[Message] = RetainedIndex(_retained_size)
        self.version = 1
        self.uplink: Upward | None = None
        self.topics_retained = 0
        self.retained_refused = 0
        self._retained_by: Counter[str] = Counter()  # bytes, by the identity that wrote them

    def changed(self) -> None:
        """Rights or subscriptions changed: every remembered route is stale."""
        self.version += 1

    def too_deep(self, topic: str) -> bool:
        """Whether a topic has more levels than this gateway handles."""
        return topic.count("/") >= self.limits.max_topic_levels

    def decide_publish(self, session: Session, topic: str, retain: bool) -> Decision:
        """Publishing needs publish, a retained one retain as well (policy rule 1)."""
        if self.too_deep(topic):
            return Decision(False, Reason.PUBLISH_DENIED, "", "limits.max_topic_levels", 0, "")
        return session.grants.decide_publish(topic, retain=retain)

    def route(self, topic: str) -> Route:
        """Every session that is subscribed to `topic` and may receive it, with its QoS; the uplink, if it goes up."""
        matched = self.subscriptions.match(topic)
        targets = [(session, qos) for session, qos in matched.items() if session.may_receive(topic)]
        most = self.uplink.wants(topic) if self.uplink is not None else None
        if most is None:
            return Route(topic, targets, self.version)
        return Route(topic, targets, self.version, self.uplink, most)

    def retain(self, message: Message, writer: str = "") -> bool:
        """Keep or, when the payload is empty, forget a retained message; False when a byte bound refuses it.

        `writer` is the identity whose share it counts for; without one (from a plugin or the upstream) for nobody's.
        The one before goes in any case [MQTT-3.3.1-7]: no state at all is better than one that is no longer true.
        """
        topic, message.writer = message.topic, writer
        old = self.retained.get(topic)
        if old is not None:
            self._count_retained(old, -_retained_size(old))
        if not message.payload:
            self.retained.remove(topic)
            return True
        if not self._retained_fits(message, old):
            self.retained.remove(topic)
            self.retained_refused += 1
            return False
        if old is None:
            self.topics_retained += 1
        message.kept = self.topics_retained if old is None else old.kept
        self.retained.set(topic, message)
        self._count_retained(message, _retained_size(message))
        return True

    def _retained_fits(self, message: Message, old: Message | None) -> bool:
        """Whether there is room in the whole and in the writer's share, when the one before has gone."""
        size, most = _retained_size(message), self.limits.retained_max_bytes
        held = self.retained.total_bytes - (_retained_size(old) if old is not None else 0)
        within_share = not message.writer or self._retained_by[message.writer] + size <= most // RETAINED_SHARE
        return within_share and held + size <= most

    def _count_retained(self, message: Message, size: int) -> None:
        if not message.writer:
            return
        self._retained_by[message.writer] += size
        if not self._retained_by[message.writer]:
            del self._retained_by[message.writer]

    def decide_subscribe(self, session: Session, topic_filter: str) -> Decision:
        """Subscribing needs one grant that covers the filter, and room among the session's subscriptions."""
        if self.too_deep(topic_filter):
            return Decision(False, Reason.SUBSCRIBE_DENIED, "", "limits.max_topic_levels", 0, "")
        most = self.limits.max_subscriptions_per_session
        full = len(session.subscriptions) >= most or not session.share.may_subscribe(topic_filter, most)
        if full and topic_filter not in session.subscriptions:
            rule = "limits.max_subscriptions_per_session"
            return Decision(False, Reason.SUBSCRIBE_DENIED, "", rule, 0, "")
        return session.grants.decide(Action.SUBSCRIBE, topic_filter)

    def subscribe(self, session: Session, topic_filter: str, qos: int) -> None:
        """Make or replace a permitted subscription [MQTT-3.8.4-3]."""
        session.subscribed(topic_filter, qos)
        self.subscriptions.add(topic_filter, session, qos)
        self.changed()

    def retained_topics(self, topic_filter: str) -> Iterator[str]:
        """Topics that have a retained message now and that a new subscription matches.

        They are looked for when the first is taken, so that subscribing again and again costs nothing; what was
        retained on a new topic in the meantime has been delivered live.
        """
        return self._retained_until(self.topics_retained, topic_filter)

    def _retained_until(self, count: int, topic_filter: str) -> Iterator[str]:
        yield from [topic for topic, message in self.retained.match(topic_filter) if message.kept <= count]

    def unsubscribe(self, session: Session, topic_filters: Sequence[str]) -> list[str]:
        """Remove subscriptions; the filters that existed."""
        removed = [f for f in topic_filters if session.unsubscribed(f)]
        for topic_filter in removed:
            self.subscriptions.remove(topic_filter, session)
            if session.walks is not None:
                session.walks.pop(topic_filter, None)
        if removed:
            self.changed()
        return removed

    def discard(self, session: Session) -> None:
        """Forget a session with everything in it."""
        self.unsubscribe(session, tuple(session.subscriptions))
        session.purge()
        self.sessions.remove(session)

    def open(self, session: Session) -> None:
        """File a new session, and forget the oldest of an identity that leaves too many, or too much, behind."""
        away = [s for s in self.sessions.of(session.identity) if s.link is None]
        away.sort(key=lambda s: s.disconnected_at)
        if len(away) >= MAX_STORED_SESSIONS:
            self.discard(away.pop(0))
        while away and away[0].share.is_exhausted and not away[0].durable:
            self.discard(away.pop(0))
        self.sessions.add(session)

    def put_away(self, session: Session) -> None:
        """Take a session out without forgetting what it holds: nothing is delivered to it any more."""
        for topic_filter in session.subscriptions:
            self.subscriptions.remove(topic_filter, session)
        self.sessions.remove(session)
        self.changed()

    def restore(self, session: Session) -> None:
        """File a session that outlived a restart, with its subscriptions."""
        self.sessions.add(session)
        for topic_filter, qos in session.subscriptions.items():
            self.subscriptions.add(topic_filter, session, qos)
        self.changed()

    def live_of(self, identity: str) -> list[Session]:
        """Connected sessions of one identity."""
        return [session for session in self.sessions.of(identity) if session.link is not None]


def _retained_size(message: Message) -> int:
    """What a retained message is accounted with: a million empty ones are not nothing."""
    return message.size + RETAINED_OVERHEAD
