"""Caches that are bounded by bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.byte_cache import ByteCache, Remembered


def size(key: str, value: int) -> int:
    """The value is its own size, and the key has a byte for each character."""
    return value + len(key)


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache = ByteCache(12, size)  # six bytes of young values, and as many of old ones
    cache.put("a", 2)
    cache.put("b", 2)  # 3 + 3 bytes are just as many as may be young
    assert [cache.find(key) for key in "abc"] == [2, 2, None]
    cache.put("c", 1)  # a and b are old
    assert cache.find("a") == 2  # and a is young again: 2 + 3 bytes
    cache.put("d", 1)  # a seventh byte: c and a are old, b is gone
    assert [cache.find(key) for key in "bcad"] == [None, 1, 2, 1]


def test_old_values_are_dropped_only_for_new_ones() -> None:
    cache = ByteCache(6, size)
    cache.put("a", 2)
    cache.put("b", 2)
    for _ in range(3):  # one is young and one is old, by turns
        assert [cache.find(key) for key in "ab"] == [2, 2]


def test_a_value_of_more_than_half_of_the_bytes_is_not_kept() -> None:
    cache = ByteCache(13, size)
    cache.put("a", 2)
    cache.put("b", 6)
    assert [cache.find(key) for key in "ab"] == [2, None]
    cache.put("c", 5)
    assert [cache.find(key) for key in "ac"] == [2, 5]


def test_what_is_put_again_counts_once() -> None:
    cache = ByteCache(8, size)
    cache.put("a", 1)
    cache.put("a", 1)
    cache.put("b", 1)
    assert dict(cache) == {"a": 1, "b": 1}


def test_an_answer_is_remembered_while_it_is_used() -> None:
    asked = []

    def number(key: str) -> int | None:
        asked.append(key)
        return int(key) or None

    remembered = Remembered(number, 8, lambda key, value: 2)
    assert [remembered[key] for key in ("1", "0", "1", "0")] == [1, None, 1, None]
    assert asked == ["1", "0"]  # None is an answer too
    assert [remembered[key] for key in ("3", "1", "4", "5")] == [3, 1, 4, 5]
    # 1 and 0 became old with 3, and then 3 and 1 with 4.
    asked.clear()
    assert [remembered[key] for key in ("1", "3", "0")] == [1, 3, None]
    assert asked == ["3", "0"]  # 4 and 5 became old with 1


def test_threads_share_a_cache() -> None:
    remembered = Remembered(lambda key: key * key, 64, lambda key, value: 8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(remembered.__getitem__, [number % 9 for number in range(4000)]))
    assert found == [(number % 9) ** 2 for number in range(4000)]


def test_several_keys_are_looked_up_in_their_order():
    cache = ByteCache(100, lambda key, value: 10)
    cache.put("a", 1)
    cache.put("c", 3)
    assert cache.find_all(["d", "c", "b", "a"]) == ({"c": 3, "a": 1}, ["d", "b"])
