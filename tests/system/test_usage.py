"""Wrong arguments: one sentence and how the command is used on standard error, exit status 2, and nothing is done."""

import json
import subprocess

import pytest

from mwtest import build

WRONG = [
    [], ["nonsense"], ["--nonsense"],
    ["run"], ["run", "--nonsense", "--", "true"], ["run", "-p", "nonsense", "--", "true"],
    ["run", "--netflow", "nonsense", "--", "true"], ["run", "--netflow", "localhost:80", "--", "true"],
    ["run", "--netflow", "unix:/run/x", "--", "true"], ["run", "--netflow-role", "nonsense", "--", "true"],
    *(["run", "--net", "isolated", "--egress", word, "--", "true"]
      for word in ("", "nonsense", "any,dns", "none,192.0.2.0/24", "192.0.2.0/33", "192.0.2.1/24", "::ffff:192.0.2.1", "dns,")),
    ["run", "--egress", "any", "--egress", "none", "--", "true"], ["run", "--egress"],
    *(["run", "--net", "isolated", "--to-host", word, "--", "true"] for word in ("", "0", "65536", "80/sctp", "1-2", "x")),
    ["run", "--net", "host", "--egress", "any", "--", "true"], ["run", "--net", "host", "--to-host", "80", "--", "true"],
    ["run", "--config", "WRONG.toml", "--", "true"], ["run", "--workers", "0", "--", "true"],
    ["ps", "--nonsense"], ["ps", "a", "b"], ["doctor", "--nonsense"], ["check-config"], ["check-config", "a", "b"],
    ["adopt"], ["adopt", "a", "b"], ["clean", "--nonsense"], ["clean", "a", "b"], ["version", "x"],
    ["flows", "nonsense"], ["flows", "port", "x"], ["flows", "--nonsense"],
    ["top", "--sort", "nonsense"], ["top", "-d", "0", "-b"], ["top"], ["why"], ["why", "nonsense"],
    ["guard", "--nonsense"], ["guard", "--probe", "nonsense"], ["guard", "--probe", "none"],
    ["guard", "--rules", "WRONG.toml"],
    ["close"], ["close", "nonsense"], ["get", "1:1"], ["get", "1:1", "nonsense"], ["get", "nonsense", "nodelay"],
    ["set", "1:1", "nodelay"], ["set", "nonsense", "nodelay", "1"], ["set", "1:1", "nonsense", "1"],
    ["set", "1:1", "nodelay", "0.5"], ["set", "1:1", "nodelay", "yes"], ["set", "1:1", "pacing", "--", "-5"],
    ["set", "1:1", "pacing", "-5"], ["set", "1:1", "sndbuf", "1e6"], ["set", "1:1", "sndbuf", "99999999999999999999"],
    ["set", "1:1", "sndtimeo", "1."], ["set", "1:1", "sndtimeo", "1.x"], ["set", "1:1", "sndtimeo", "nan"],
    ["set", "1:1", "min-rate-in", "-5"], ["set", "192.0.2.1", "nodelay", "1"], ["set", "1:1", "congestion", "146"],
    ["block", "nonsense"], ["unblock", "nonsense"], ["allow", "nonsense"],
    ["pause", "nonsense"], ["resume", "nonsense"],
    ["block", "192.0.2.1", "--ttl", "x"], ["block", "192.0.2.1", "--reason", "a\nb"],
    ["rules", "x"], ["undo"], ["undo", "x"],
]


@pytest.fixture(scope="module")
def mw(tmp_path_factory):
    """Runs mw beside a file that is no right configuration."""
    place = tmp_path_factory.mktemp("usage")
    (place / "WRONG.toml").write_text("nonsense = 1\n")

    def run(words):
        return subprocess.run([build.program("mw"), *words], capture_output=True, text=True, errors="replace",
                              timeout=30, cwd=place, stdin=subprocess.DEVNULL)
    return run


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_arguments_are_told_with_the_usage(mw, words):
    done = mw(words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    reason, _, usage = done.stderr.partition("Usage: ")
    assert reason.strip() != ""
    known = words and words[0] not in ("nonsense", "--nonsense") and "--" not in words
    assert usage.startswith(f"mw {words[0]}" if known or words[:1] == ["run"] else "mw"), done.stderr


def test_every_command_is_tried(mw):
    listed = mw(["--help"]).stdout.partition("Subcommands:")[2]
    commands = {line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "}
    assert "run" in commands
    assert commands <= {words[0] for words in WRONG if words}


@pytest.mark.parametrize("words", [["flows", "-j", "nonsense"], ["flows", "-wj", "--nonsense"], ["why", "--json"],
                                   ["version", "-j", "x"], ["clean", "-j", "a", "b"], ["ps", "-j", "a", "b"],
                                   ["check-config", "-j"], ["nonsense", "-j"]], ids=" ".join)
def test_with_json_the_error_is_a_document_too(mw, words):
    done = mw(words)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["status"] == 2 and document["error"] in done.stderr
    assert "Usage: mw" in done.stderr


@pytest.mark.parametrize("word", ["größer", "a\"b\\c", "\t\x1b", "日本"])
def test_an_error_in_json_carries_any_text(mw, word):
    assert json.loads(mw(["why", "-j", word]).stdout)["error"].endswith(word)


def test_bytes_that_are_no_text_are_replaced(mw):
    assert json.loads(mw(["why", "-j", b"a\xffb"]).stdout)["error"].endswith("a\ufffdb")


def test_version_and_clean_have_json(mw):
    version = json.loads(mw(["version", "-j"]).stdout)["version"]
    assert mw(["version"]).stdout == f"mw {version}\n"
    cleaned = json.loads(mw(["clean", "-j"]).stdout)
    assert cleaned["schema"] == 1 and isinstance(cleaned["removed"], list)
