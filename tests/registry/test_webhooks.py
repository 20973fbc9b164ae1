from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from support.registry import FakeTime, claimed_job, queued_job
from support.shelf import Shelf
from tunedock_api.errors import BadInput, NotFound
from tunedock_registry.clock import Clock
from tunedock_registry.records import VersionState
from tunedock_registry.registry import Registry
from tunedock_registry.webhook_events import EVENT_TYPES, announce
from tunedock_registry.webhooks import RETRY_DELAYS_S, SENDING_S, Delivery, NewSecret, Webhooks

URL = "https://example.com/hook"
client = OpenAI(api_key="-", base_url="http://localhost")


def endpoint(registry: Registry, *types: str) -> NewSecret:
    return registry.webhooks.create("default", "ci", URL, types or EVENT_TYPES)


def cancelled_job(registry: Registry) -> str:
    return registry.jobs.request_cancel("default", queued_job(registry).id).id


def accepted(delivery: Delivery, secret: str) -> bool:
    """What the client's own verification says (it compares the timestamp with the real time: no tolerance test here)."""
    try:
        client.webhooks.verify_signature(delivery.body, delivery.headers, secret=secret, tolerance=10**10)
    except InvalidWebhookSignatureError:
        return False
    return True


def test_a_delivery_is_what_the_openai_client_accepts_and_parses(registry: Registry) -> None:
    new = endpoint(registry)
    job_id = cancelled_job(registry)
    [delivery] = registry.webhooks.take_due()
    assert delivery.url == URL
    assert accepted(delivery, new.secret)
    value = json.loads(delivery.body)
    assert (value["object"], value["type"], value["data"]) == ("event", "fine_tuning.job.cancelled", {"id": job_id})
    assert value["id"] == delivery.headers["webhook-id"]
    assert not accepted(delivery, endpoint(registry).secret)


def test_unwrap_accepts_a_fresh_delivery(registry: Registry) -> None:
    new = endpoint(registry)
    delivery = Webhooks(registry.db, Clock()).test("default", new.endpoint.id, "fine_tuning.job.succeeded")
    event = client.webhooks.unwrap(delivery.body, delivery.headers, secret=new.secret)
    assert event.type == "fine_tuning.job.succeeded"
    assert delivery.id is None


def test_failed_and_cancelled_jobs_are_announced_with_their_change(registry: Registry) -> None:
    endpoint(registry)
    claim = claimed_job(registry)
    registry.jobs.fail(claim, {"code": "x", "message": "y", "param": None})
    cancelled_job(registry)
    types = [json.loads(delivery.body)["type"] for delivery in registry.webhooks.take_due()]
    assert types == ["fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@pytest.mark.parametrize(("verdict", "event"), [("ready", "succeeded"), ("rejected", "failed")])
def test_a_trained_job_is_announced_when_the_gate_has_spoken(tmp_path: Path, verdict: VersionState, event: str) -> None:
    shelf = Shelf.open(tmp_path)
    endpoint(shelf.registry)
    claim = claimed_job(shelf.registry)
    version = shelf.registry.adapters.publish("default", "support", shelf.prepare(), origin="trained", claim=claim)
    shelf.registry.adapters.set_state(version.id, "verifying")
    assert shelf.registry.webhooks.take_due() == []
    shelf.registry.adapters.set_state(version.id, verdict)
    [delivery] = shelf.registry.webhooks.take_due()
    value = json.loads(delivery.body)
    assert (value["type"], value["data"]["id"]) == (f"fine_tuning.job.{event}", claim.job.id)
    shelf.registry.close()


def test_an_imported_version_is_no_job_and_announces_nothing(tmp_path: Path) -> None:
    shelf = Shelf.open(tmp_path)
    endpoint(shelf.registry)
    shelf.ready()
    assert shelf.registry.webhooks.take_due() == []
    shelf.registry.close()


def test_an_event_is_told_once_to_those_who_asked_for_it(registry: Registry) -> None:
    wants = endpoint(registry, "fine_tuning.job.succeeded")
    endpoint(registry, "fine_tuning.job.failed")
    registry.webhooks.create("other", "x", URL, EVENT_TYPES)
    for _ in range(2):
        with registry.db.write() as session:
            announce(session, "default", "fine_tuning.job.succeeded", "ftjob-1", 1_700_000_000)
    assert [delivery.endpoint_id for delivery in registry.webhooks.take_due()] == [wants.endpoint.id]


def test_a_delivery_is_one_senders_until_it_has_had_its_time(registry: Registry, time: FakeTime) -> None:
    endpoint(registry)
    cancelled_job(registry)
    [first] = registry.webhooks.take_due()
    assert registry.webhooks.take_due() == []
    time.advance(SENDING_S)
    [second] = registry.webhooks.take_due()
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + SENDING_S


def test_a_delivered_event_is_not_sent_again(registry: Registry, time: FakeTime) -> None:
    endpoint(registry)
    cancelled_job(registry)
    [delivery] = registry.webhooks.take_due()
    registry.webhooks.report(delivery, 204)
    registry.webhooks.report(delivery, 500)
    time.advance(10**6)
    assert registry.webhooks.take_due() == []


@pytest.mark.parametrize("status", [None, 500, 302, 404])
def test_a_failed_delivery_is_tried_on_the_schedule_and_then_given_up(
    registry: Registry, time: FakeTime, status: int | None
) -> None:
    endpoint(registry)
    cancelled_job(registry)
    for delay_s in RETRY_DELAYS_S:
        [delivery] = registry.webhooks.take_due()
        registry.webhooks.report(delivery, status)
        time.advance(delay_s - 1)
        assert registry.webhooks.take_due() == []
        time.advance(1)
    [last] = registry.webhooks.take_due()
    registry.webhooks.report(last, status)
    time.advance(10**6)
    assert registry.webhooks.take_due() == []


def test_an_endpoint_that_is_gone_is_left_alone(registry: Registry, time: FakeTime) -> None:
    endpoint(registry)
    cancelled_job(registry)
    [delivery] = registry.webhooks.take_due()
    registry.webhooks.report(delivery, 410)
    time.advance(10**6)
    assert registry.webhooks.take_due() == []


def test_during_a_rotation_both_secrets_are_accepted_for_a_day(registry: Registry, time: FakeTime) -> None:
    old = endpoint(registry)
    new = registry.webhooks.rotate_secret("default", old.endpoint.id, keep_old=True)
    assert new.secret != old.secret
    assert new.endpoint.signing_secret_hint != old.endpoint.signing_secret_hint
    cancelled_job(registry)
    [delivery] = registry.webhooks.take_due()
    assert accepted(delivery, old.secret)
    assert accepted(delivery, new.secret)
    time.advance(24 * 3600)
    [delivery] = registry.webhooks.take_due()
    assert not accepted(delivery, old.secret)
    assert accepted(delivery, new.secret)


def test_without_a_grace_the_old_secret_ends_at_once(registry: Registry) -> None:
    old = endpoint(registry)
    new = registry.webhooks.rotate_secret("default", old.endpoint.id)
    delivery = registry.webhooks.test("default", old.endpoint.id, EVENT_TYPES[0])
    assert not accepted(delivery, old.secret)
    assert accepted(delivery, new.secret)


def test_endpoints_are_listed_changed_and_deleted(registry: Registry) -> None:
    first, second = endpoint(registry), endpoint(registry)
    assert first.secret.startswith("whsec_")
    assert first.secret not in repr(first)
    assert first.secret not in str(first.endpoint)
    assert [item.id for item in registry.webhooks.list("default").items] == [second.endpoint.id, first.endpoint.id]
    changed = registry.webhooks.update("default", first.endpoint.id, name="x", event_types=[EVENT_TYPES[0]])
    assert (changed.name, changed.url, changed.event_types) == ("x", URL, (EVENT_TYPES[0],))
    assert registry.webhooks.get("default", first.endpoint.id) == changed
    cancelled_job(registry)
    registry.webhooks.delete("default", second.endpoint.id)
    assert registry.webhooks.take_due() == []
    for project, endpoint_id in (("other", first.endpoint.id), ("default", second.endpoint.id)):
        with pytest.raises(NotFound):
            registry.webhooks.get(project, endpoint_id)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://",
        "https://user:secret@example.com/",
        "https://example.com/#part",
        "https://exa mple.com/",
        "https://example.com/\n",
        "https://example.com:99999/",
        "https://[::1/",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_an_address_that_is_not_plain_http_is_refused(registry: Registry, url: str) -> None:
    with pytest.raises(BadInput) as caught:
        registry.webhooks.create("default", "x", url, EVENT_TYPES)
    assert caught.value.param == "url"


def test_an_unknown_event_type_is_refused_with_the_known_ones(registry: Registry) -> None:
    with pytest.raises(BadInput, match=r"fine_tuning\.job\.succeeded"):
        registry.webhooks.create("default", "x", URL, ["job.done"])
