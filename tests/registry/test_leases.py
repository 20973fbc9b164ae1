from __future__ import annotations

from tunedock_registry.leases import LEASE_S, LeaseWatch


def test_a_beat_that_stands_still_for_a_lease_has_expired() -> None:
    watch = LeaseWatch()
    assert watch.expired([("job", (1, 0))], now=100) == {}
    assert watch.expired([("job", (1, 0))], now=100 + LEASE_S - 0.1) == {}
    assert watch.expired([("job", (1, 0))], now=100 + LEASE_S) == {"job": (1, 0)}


def test_a_beat_that_moves_never_expires() -> None:
    watch = LeaseWatch()
    for n in range(20):
        assert watch.expired([("job", (1, n))], now=n * (LEASE_S - 1)) == {}


def test_a_new_epoch_starts_a_new_lease() -> None:
    watch = LeaseWatch()
    watch.expired([("job", (1, 3))], now=0)
    assert watch.expired([("job", (2, 3))], now=LEASE_S) == {}


def test_a_scanner_that_has_just_started_waits_a_full_lease() -> None:
    assert LeaseWatch().expired([("job", (7, 99))], now=1e9) == {}


def test_a_job_that_was_let_go_is_forgotten() -> None:
    watch = LeaseWatch()
    watch.expired([("job", (1, 0))], now=0)
    watch.expired([], now=1)
    assert watch.expired([("job", (1, 0))], now=LEASE_S) == {}


def test_takeover_fits_into_the_promised_thirty_seconds() -> None:
    scan_s = 2.0
    assert LEASE_S + 2 * scan_s <= 30
