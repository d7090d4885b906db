import pytest

from server.api.accesskey import derive_access_key


def test_the_key_is_what_three_real_clients_sent():
    wanted = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4"
    assert derive_access_key("a@b.c", "password") == wanted


@pytest.mark.parametrize(
    ("email", "password"), [("A@b.c", "password"), ("a@b.c", "Password"), ("a@b.c", "passwort")]
)
def test_every_letter_counts(email, password):
    assert derive_access_key(email, password) != derive_access_key("a@b.c", "password")


def test_a_short_password_and_other_alphabets_have_a_key_too():
    key = derive_access_key("名@例え.jp", "短い")
    assert len(key) == 64
    assert key.isascii()
