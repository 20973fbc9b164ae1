from __future__ import annotations

from support.training import items
from tunedock_trainer.passes import cut
from tunedock_trainer.sampler import Sampler, Source


def test_every_epoch_shows_every_example_once_in_another_order() -> None:
    data = items(10)
    sampler = Sampler([Source(data)], batch_size=4, seed=1)
    assert sampler.steps_per_epoch == 3
    epochs = [[item for step in range(3) for item in sampler.batch(3 * epoch + step)] for epoch in range(2)]
    for shown in epochs:
        assert sorted(map(id, shown)) == sorted(map(id, data))
    assert epochs[0] != epochs[1]


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    data = items(10)
    one, two = (Sampler([Source(data)], batch_size=4, seed=5) for _ in range(2))
    for step in range(6):
        one.batch(step)
    assert one.batch(4) == two.batch(4)
    assert Sampler([Source(data)], batch_size=4, seed=6).batch(4) != two.batch(4)


def test_weights_say_how_much_of_a_file_an_epoch_shows() -> None:
    many, few = items(20, seed=1), items(6, seed=2)
    sampler = Sampler([Source(many, 0.5), Source(few, 2.0)], batch_size=22, seed=1)
    assert sampler.per_epoch == 22
    shown = sampler.batch(0)
    assert sum(item in many for item in shown) == 10
    assert all(shown.count(item) == 2 for item in few)
    assert {id(i) for i in shown if i in many} != {id(i) for i in sampler.batch(1) if i in many}


def test_passes_hold_at_most_so_many_tokens_and_all_items() -> None:
    data = items(17)
    parts = list(cut(data, max_tokens=30))
    assert sorted(number for part in parts for number in part.numbers) == list(range(17))
    assert all(sum(item.num_tokens for item in part.items) <= 30 for part in parts)
    assert len(list(cut(data, max_tokens=1))) == 17
