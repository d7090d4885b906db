"""What the cache of images keeps, and what it drops."""

from concurrent.futures import ThreadPoolExecutor

from server.api.image_cache import LIFETIME, MOST_ENTRIES, ImageCache

A, B, C = b"a" * 10, b"b" * 10, b"c" * 10
ME, OTHER = b"me", b"other"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_file_is_found_by_client_and_key():
    cache = ImageCache(1000)
    cache.put(ME, "key", A)
    assert cache.get(ME, "key") is A
    assert cache.get(OTHER, "key") is None
    assert cache.get(ME, "other") is None


def test_equal_files_are_stored_once_and_dropped_with_their_last_key():
    cache = ImageCache(1000)
    for client in (ME, OTHER):
        cache.put(client, "key", bytes(bytearray(A)))
    assert cache.size == 10
    cache.put(ME, "key", B)
    assert cache.size == 20
    cache.put(OTHER, "key", B)
    assert cache.size == 10
    assert cache.get(OTHER, "key") is cache.get(ME, "key")


def test_the_least_recently_used_is_dropped_first():
    cache = ImageCache(40)
    cache.put(ME, "a", A)
    cache.put(ME, "b", B)
    assert cache.get(ME, "a") == A
    cache.put(ME, "c", C)  # a client may have half: 20
    assert [cache.get(ME, key) for key in "abc"] == [A, None, C]


def test_one_client_never_has_more_than_half():
    cache = ImageCache(40)
    cache.put(OTHER, "a", A)
    cache.put(OTHER, "b", B)
    for number in range(100):
        cache.put(ME, str(number), b"%010d" % number)
    assert (cache.get(OTHER, "a"), cache.get(OTHER, "b"), cache.size) == (A, B, 40)
    cache.put(ME, "large", b"x" * 21)
    assert cache.get(ME, "large") is None
    assert cache.get(ME, "99") is not None


def test_all_clients_together_never_have_more_than_the_limit():
    cache = ImageCache(40)
    for number in range(100):
        cache.put(b"%d" % number, "key", b"%010d" % number)
        assert cache.size <= 40
    assert cache.get(b"99", "key") is not None
    assert cache.get(b"95", "key") is None


def test_keys_of_one_file_are_bounded_too():
    cache = ImageCache(1 << 30)
    for number in range(MOST_ENTRIES + 10):
        cache.put(ME, str(number), A)
    assert (cache.get(ME, "9"), cache.get(ME, "10")) == (None, A)


def test_an_image_is_kept_for_some_time_after_its_last_use():
    cache = ImageCache(1000, clock := Clock())
    cache.put(ME, "a", A)
    cache.put(ME, "b", B)
    clock.now = LIFETIME
    assert cache.get(ME, "a") == A
    clock.now += 1
    assert (cache.get(ME, "a"), cache.get(ME, "b"), cache.size) == (A, None, 10)
    clock.now += LIFETIME + 1
    assert (cache.get(ME, "a"), cache.size) == (None, 0)


def test_a_cache_of_size_0_keeps_nothing():
    cache = ImageCache(0)
    cache.put(ME, "a", A)
    assert cache.get(ME, "a") is None


def test_a_name_of_a_client_does_not_reveal_its_token():
    cache = ImageCache(1000)
    name = cache.identify("Bearer pst-secret")
    assert name == cache.identify("Bearer pst-secret") != cache.identify("Bearer pst-other")
    assert b"pst-" not in name
    assert name != ImageCache(1000).identify("Bearer pst-secret")


def test_threads_may_share_it():
    cache = ImageCache(2000)

    def work(number):
        for key in range(200):
            cache.put(b"%d" % number, str(key), b"%d" % (key % 7) * 50)
            cache.get(b"%d" % number, str(key - 3))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert 0 < cache.size <= 2000
