"""Edits of the accounts file: the rest of it stays as it is, and it is never half written."""

import os
from errno import ENOSPC
from pathlib import Path

import pytest

from server.api.accounts import load_accounts
from server.api.credentials import generate_token, hash_token
from server.cli.account_tables import append_account, remove_account
from server.config.toml import ConfigError

HASH = hash_token(generate_token())


def table(name, *more):
    return "\n".join(("[[account]]", f'name = "{name}"', f'token_hash = "{HASH}"', *more, ""))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.toml"


def test_the_first_account_creates_a_file_that_only_its_owner_reads(file):
    append_account(file, {"name": "anna", "token_hash": HASH, "limit": 3, "priority": None})
    (account,) = load_accounts(file).account
    assert (account.name, account.limit, account.priority) == ("anna", 3, 0)
    assert "priority" not in file.read_text()
    assert file.read_text().startswith("# People who may use this server.")
    assert os.name != "posix" or file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["tokens.toml"]


@pytest.mark.parametrize("name", ["名", "a b", 'quote " and \\', "😀", "a@b.c", "#", "[[account]]"])
def test_any_name_can_be_written_and_removed(file, name):
    append_account(file, {"name": name, "token_hash": [HASH, HASH]})
    append_account(file, {"name": "other", "token_hash": HASH})
    assert [account.name for account in load_accounts(file).account] == [name, "other"]
    remove_account(file, name)
    assert [account.name for account in load_accounts(file).account] == ["other"]


def test_adding_leaves_the_rest_of_the_file_as_it_is(file):
    before = f"# mine\n\n{table('a', '# trailing')}# the end, without a newline"
    file.write_text(before)
    append_account(file, {"name": "b", "token_hash": HASH})
    assert file.read_text() == f"{before}\n\n{table('b')}"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("a", "# mine\n\n# about b\n{b}\n{c}\n# the end\n"),
        ("b", "# mine\n\n# about a\n{a}# still about a\n\n{c}\n# the end\n"),
        ("c", "# mine\n\n# about a\n{a}# still about a\n\n# about b\n{b}\n# the end\n"),
    ],
)
def test_removing_takes_the_comments_of_the_table_and_no_other(file, newline, name, left):
    tables = {"a": table("a"), "b": table("b"), "c": table("c", "# of c", "limit = 3 # last")}
    whole = "# mine\n\n# about a\n{a}# still about a\n\n# about b\n{b}\n{c}\n# the end\n".format(**tables)
    file.write_bytes(whole.replace("\n", newline).encode())
    remove_account(file, name)
    assert file.read_bytes().decode() == left.format(**tables).replace("\n", newline)


def test_all_tables_of_a_name_are_removed(file):
    file.write_text(table("a") + table("b") + table("a") + table("a"))
    remove_account(file, "a")
    assert file.read_text() == table("b")


def test_a_name_is_listed_once_and_a_missing_one_is_reported(file):
    file.write_text(table("a"))
    before = file.read_text()
    with pytest.raises(ConfigError, match="'a' is listed already; revoke it first, or choose another name"):
        append_account(file, {"name": "a", "token_hash": HASH})
    with pytest.raises(ConfigError, match="'b' is not listed; it lists a"):
        remove_account(file, "b")
    assert file.read_text() == before


@pytest.mark.parametrize("text", [table("a") + "limits = 3\n", "[[account", "\xff"])
def test_a_broken_file_is_reported_and_not_touched(file, text):
    file.write_bytes(text.encode("latin-1"))
    for edit in (
        lambda: append_account(file, {"name": "b", "token_hash": HASH}),
        lambda: remove_account(file, "a"),
    ):
        with pytest.raises(ConfigError, match=r"tokens\.toml:\d"):
            edit()
    assert file.read_bytes() == text.encode("latin-1")
    assert len(list(file.parent.iterdir())) == 1


def test_accounts_in_another_form_are_not_edited(file):
    text = f'account = [{{name = "a", token_hash = "{HASH}"}}, {{name = "b", token_hash = "{HASH}"}}]\n'
    file.write_text(text)
    for edit in (
        lambda: append_account(file, {"name": "c", "token_hash": HASH}),
        lambda: remove_account(file, "a"),
    ):
        with pytest.raises(ConfigError, match="cannot be edited here unless each account is a table"):
            edit()
    assert file.read_text() == text
    assert len(list(file.parent.iterdir())) == 1


def test_two_edits_at_a_time_are_refused(file):
    file.write_text(table("a"))
    file.with_name("tokens.toml.new").write_text("")
    with pytest.raises(ConfigError, match=r"tokens\.toml\.new exists: another `naiad token` is running"):
        remove_account(file, "a")
    assert file.read_text() == table("a")


@pytest.mark.skipif(os.name != "posix", reason="modes and links")
def test_mode_and_link_of_the_file_stay(file, tmp_path):
    target = tmp_path / "folder" / "real.toml"
    target.parent.mkdir()
    target.write_text(table("a"))
    target.chmod(0o644)
    file.symlink_to(target)
    append_account(file, {"name": "b", "token_hash": HASH})
    assert file.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert len(load_accounts(target).account) == 2


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "tokens.toml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="not a regular file"):
        append_account(pipe, {"name": "anna", "token_hash": "sha256:" + "0" * 64})
    assert pipe.is_fifo()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(file, monkeypatch, call):
    def fail(*_):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    file.write_text(table("a"))
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(ConfigError, match=r"cannot be replaced \(No space left on device\); it is unchanged"):
        append_account(file, {"name": "b", "token_hash": HASH})
    assert file.read_text() == table("a")
    assert list(file.parent.iterdir()) == [file]
