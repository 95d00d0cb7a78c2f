"""Text of others on its way to a console, a log or a file: nothing that a terminal obeys, and no secret of
a URL.
"""

import json
import logging
from dataclasses import replace

import pytest
from sample_batches import tiny_config

from flava_ds import config as configuration
from flava_ds.checkpoints.fits import changed_settings
from flava_ds.checkpoints.place import Place
from flava_ds.config import DataConfig, SourceConfig
from flava_ds.plain_text import PlainFormatter, one_line, without_secrets
from flava_ds.storage.files import RemoteShard

SECRETS = ("geheim", "SIGNED")
URL = "https://user:geheim@host/d/{0..3}.tar?X-Signature=SIGNED"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with a question? yes", "plain, with a question? yes"),
        ("'https://host/0.tar?sig=a%20b&x=1' cannot be read", "'https://host/0.tar' cannot be read"),
        ("http://user:pass@host/x and s3://bucket/y?z", "http://host/x and s3://bucket/y"),
        ("https://TOKEN@host/x", "https://host/x"),
        ("sftp://user:pass@host/x", "sftp://user@host/x"),
        ("sftp://user@host/x", "sftp://user@host/x"),
        ("hf://datasets/a/b@main/x.tar", "hf://datasets/a/b@main/x.tar"),
        ("chained::https://a:b@host/x?q", "chained::https://host/x"),
        ("(url=https://a:b@c/d?e=f)", "(url=https://c/d)"),
    ],
)
def test_urls_lose_their_secrets_and_nothing_else(text, shown):
    assert without_secrets(text) == shown


def test_a_line_is_one_line_without_what_a_terminal_obeys():
    said = one_line(
        "a\nb \x1b]0;title\x07\x1b[2J \x9b31m \u202e \ud800 \N{LATIN SMALL LETTER E WITH ACUTE} " + URL
    )
    assert said.isprintable() and "\\x1b]0;title\\x07" in said and "é" in said and "geheim" not in said
    assert len(one_line("x" * 10**6)) < 2100 and one_line("x" * 10**6 + " do this").endswith("do this")


def test_log_lines_are_as_plain():
    record = logging.LogRecord("x", logging.INFO, "", 0, "skipped '%s' of %s", ("\x1b[2J", URL), None)
    assert PlainFormatter("[now] %(message)s").format(record) == (
        "[now] skipped '\\x1b[2J' of https://host/d/{0..3}.tar"
    )


def test_no_file_of_a_run_has_the_secrets_that_its_sources_have(tmp_path):
    """The shards are read by the URL as it was given; what is written and compared lacks them."""
    source = SourceConfig(kind="pair", shards=URL)
    config = tiny_config(data=DataConfig(sources={"pair": source}))
    configuration.save(config, tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    assert not any(secret in text for secret in SECRETS)
    assert json.loads(text)["data"]["sources"]["pair"]["shards"] == "https://host/d/{0..3}.tar"
    assert changed_settings(Place(tmp_path), config) == []
    other = config.with_sources({"pair": replace(source, shards=URL.replace("/d/", "/e/"))})
    (line,) = changed_settings(Place(tmp_path), other)
    assert "/e/" in line and not any(secret in line for secret in SECRETS)
    shard = RemoteShard("https://user:geheim@host/d/0.tar?sig=SIGNED")
    assert (str(shard), shard.name, shard.parent) == ("https://host/d/0.tar", "0.tar", "https://host/d")
    assert shard.beside("x").url == "https://user:geheim@host/d/x?sig=SIGNED"
